"""The code snippets of the page run."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.playground.browser import CAPITAL, NASTY, PASTE, completion, make_adapter, playground, snippet
from tests.service.support.harness import LiveServer

pytestmark = pytest.mark.browser


def test_the_snippets_run(
    page: Page, api: httpx.Client, tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    identity = make_adapter(page, NASTY)
    page.get_by_label("Question", exact=True).fill(NASTY)
    page.get_by_label("Question", exact=True).blur()

    run = subprocess.run(["bash", "-ec", snippet(page, "curl")], capture_output=True, check=True, timeout=120)
    decoder, text, answers = json.JSONDecoder(), run.stdout.decode(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    assert answers[0]["id"] == identity
    used = {name: answers[1][name] for name in ("context_used", "scale")}
    assert used == answers[0]["auto"]  # the best answer, as in the chat of the page
    best = completion(api, f"prompt:{NASTY}", NASTY, 64)
    assert answers[1]["choices"][0]["message"]["content"] == best
    assert printed(snippet(page, "openai")) == best + "\n"

    expected = completion(api, identity, NASTY, 64)
    code = snippet(page, "PEFT")
    archive = api.get(f"/adapters/{identity}/archive").raise_for_status().content
    zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    base = json.dumps(api.get("/readyz").json()["base"])
    assert code.count(base) == 1
    assert printed(code.replace(base, json.dumps(str(tiny_base_path)))) == expected + "\n"

    for label in ("vLLM", "LoRAX"):
        code = snippet(page, label)
        assert identity in code
        subprocess.run(["bash", "-n"], input=code.encode(), check=True, timeout=60)


def printed(code: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "snippet", "exec"), {})
    return output.getvalue()


def test_examples_go_with_the_question_and_other_adapters_are_named_by_their_id(page: Page, api: httpx.Client) -> None:
    page.get_by_text("Examples and name").click()
    page.get_by_label("Input of example 1").evaluate(PASTE, "Peru\tLima\nChad\tN'Djamena")
    make_adapter(page, CAPITAL)
    examples = [{"input": "Peru", "output": "Lima"}, {"input": "Chad", "output": "N'Djamena"}]
    page.get_by_label("Question", exact=True).fill("Mali")
    page.get_by_label("Question", exact=True).blur()
    best = completion(api, f"prompt:{CAPITAL}", "Mali", 64, examples=examples)
    assert printed(snippet(page, "openai")) == best + "\n"
    page.get_by_label("Scale of the effect").press("End")
    expect(page.locator("#announcer")).to_contain_text("scale 2 ready")
    assert page.locator("#adapter-id").inner_text() in snippet(page, "openai")


def test_the_tabs_follow_the_arrow_keys_and_copying_copies(browser: Browser, server: LiveServer) -> None:
    with playground(browser, server, permissions=["clipboard-read", "clipboard-write"]) as page:
        make_adapter(page, CAPITAL)
        page.get_by_role("tab", name="curl").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("tab", name="LoRAX")).to_be_focused()
        page.keyboard.press("Home")
        expect(page.get_by_role("tab", name="curl")).to_have_attribute("aria-selected", "true")
        page.get_by_role("button", name="Copy the snippet").click()
        expect(page.get_by_role("button", name="Copy the snippet")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == snippet(page, "curl")
