"""A real Chromium on the playground of a real service with the tiny models.

The page's policy forbids `eval`, so tests wait with `expect`, not with `wait_for_function`. All timeouts are long,
because the machine may be busy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.conftest import find_chromium
from tests.service.support.harness import LiveServer

WAIT_MS = 60_000
DESKTOP = {"width": 1440, "height": 900}
CAPITAL = "Name the capital city of the country."
NASTY = """It's "odd": <img src=x onerror=alert(1)> & $HOME `id` \\n é 漢"""
"""A task with characters that need quoting in every context."""
PHONE = {"width": 360, "height": 740}
# the browser itself logs refused requests
_EXPECTED_CONSOLE = "Failed to load resource"

PASTE = """(field, text) => {
  const data = new DataTransfer();
  data.setData("text/plain", text);
  field.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
}"""
"""Pastes text into a field."""

CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest(".visually-hidden, :disabled")) continue;
    const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))];
    found.push([element.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""
"""For each visible text: its beginning, and the contrast ratio of its colour to the background."""


class PacedDecoder:
    """A wrapper of a decoder: `pause` more seconds for each step, and a failure at the step where `fail_in` is 0."""

    def __init__(self, inner: Any, pace: Pace) -> None:
        self._inner, self._pace = inner, pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self) -> Any:
        time.sleep(self._pace.pause)
        if self._pace.fail_in is not None:
            self._pace.fail_in -= 1
            if self._pace.fail_in < 0:
                self._pace.fail_in = None
                raise RuntimeError("a failure for a test")
        return self._inner.step()


class Pace:
    """Values that tests change while the service runs."""

    def __init__(self) -> None:
        self.pause = 0.0
        self.fail_in: int | None = None


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"], timeout=WAIT_MS
        )
        yield browser
        browser.close()


@contextmanager
def playground(
    browser: Browser, server: LiveServer, *, expected: str | None = None, key: str | None = None, **options: Any
) -> Iterator[Page]:
    """The loaded page in a new browser profile; `key` is entered if the page asks for one.

    At the end, the page must not have sent a request to another machine, and must not have logged an error, except
    errors with the text `expected`.
    """
    context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    problems: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        wanted = _EXPECTED_CONSOLE in message.text or (expected is not None and expected in message.text)
        if message.type in ("error", "warning") and not wanted:
            problems.append(message.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith((server.url + "/", f"blob:{server.url}/")):
            problems.append(f"asked for {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", on_request)
    page.goto(server.url)
    if key is not None:
        give_key(page, key)
    expect(page.locator("#readiness")).to_have_attribute("data-status", "ready")
    yield page
    context.close()
    assert problems == []


def give_key(page: Page, key: str) -> None:
    """Fill in the dialog that asks for the API key."""
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_focused()
    field.fill(key)
    field.press("Enter")


def make_adapter(page: Page, prompt: str) -> str:
    """Make the adapter of a task with the form; returns its id."""
    page.get_by_label("What should the model do?").fill(prompt)
    page.get_by_role("button", name="Make adapter").click()
    expect(page.locator("#adapter-title")).to_have_text(" ".join(prompt.split()))
    expect(page.locator(".heat")).to_be_visible()
    return page.locator("#adapter-id").inner_text()


def ask(page: Page, question: str, *, max_tokens: int = 12) -> None:
    """Send a question to all selected models, without waiting for the answers."""
    options = page.locator(".options")
    if options.get_attribute("open") is None:
        options.locator("summary").click()
    page.get_by_label("Max tokens").fill(str(max_tokens))
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Question", exact=True).press("Enter")
    expect(page.locator(".turn").last.locator(".asked")).to_contain_text(question)


def answered(page: Page, state: str = "complete", lanes: tuple[str, ...] = ("base", "adapted")) -> tuple[str, ...]:
    """The texts of the last turn by lane, after all its answers have reached `state`."""
    turn = page.locator(".turn").last
    expect(turn.locator(".answer")).to_have_count(len(lanes))
    texts = []
    for lane in lanes:
        answer = turn.locator(f".answer[data-lane={lane}]")
        expect(answer).to_have_attribute("data-state", state)
        texts.append(answer.locator(".answer-text").evaluate("e => e.firstChild.data"))
    return tuple(texts)


def completion(api: httpx.Client, model: str, question: str, max_tokens: int = 12, **more: Any) -> str:
    """The API's answer to one question, without streaming, at temperature 0."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}
    text: str = (
        api.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"]
    )
    return text


def snippet(page: Page, label: str) -> str:
    """The code on a tab."""
    page.get_by_role("tab", name=label).click()
    return page.get_by_role("tabpanel").locator("code").text_content() or ""
