"""The form that a task is typed into."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_makes_an_adapter_with_the_keyboard_and_shows_what_the_api_says(page: Page, api: httpx.Client) -> None:
    prompt = page.get_by_label("What should the model do?")
    prompt.fill("Count the letters of the word.")
    prompt.press("Control+Enter")
    expect(page.locator("#adapter-title")).to_have_text("Count the letters of the word.")
    identity = page.locator("#adapter-id").inner_text()
    truth = api.get(f"/adapters/{identity}").raise_for_status().json()

    expect(page.locator("#adapter-tag")).to_have_text("made just now")
    expect(page.locator("#total-time")).to_have_text(re.compile(r"\d+(\.\d)? m?s"))
    expect(page.locator(".legend li")).to_have_count(4)
    expect(page.locator("#confidence")).to_have_text(f"{truth['confidence']:.2f}")
    expect(page.locator("#adapter-warning")).to_have_count(int(truth["warning"] is not None))
    nearest = page.locator(".bars li")
    assert [row.split("\n")[0] for row in nearest.all_inner_texts()] == [t["task_id"] for t in truth["nearest_tasks"]]
    expect(page.locator(".heat tbody tr")).to_have_count(len(truth["norms"]))
    for row, norms in zip(page.locator(".heat tbody tr").all(), truth["norms"].values(), strict=True):
        shown = [float(text) for text in row.locator("td").all_text_contents()]
        assert shown == pytest.approx(norms, rel=0.01)
    expect(page.locator("#announcer")).to_contain_text("Adapter ready")
    assert page.url.endswith(f"#{identity}")
    current = page.locator("#adapter-list [aria-current]")
    expect(current).to_contain_text("Count the letters")

    prompt.press("Control+Enter")
    expect(page.locator("#adapter-tag")).to_have_text("existed already")
    page.reload()
    expect(page.locator("#adapter-id")).to_have_text(identity)


def test_takes_examples_and_a_name_and_asks_for_what_is_missing(page: Page, api: httpx.Client) -> None:
    page.get_by_role("button", name="Make adapter").click()
    problem = page.locator("#prompt-problem")
    expect(problem).to_contain_text("Describe the task")
    expect(page.get_by_label("What should the model do?")).to_be_focused()

    page.get_by_text("Examples and name").click()
    page.get_by_label("Input of example 1").fill("cat")
    page.get_by_role("button", name="Make adapter").click()
    expect(problem).to_contain_text("its output is empty")
    expect(page.get_by_label("Output of example 1")).to_be_focused()
    page.get_by_label("Output of example 1").fill("tac")

    page.get_by_role("button", name="Add an example").click()
    expect(page.get_by_label("Input of example 2")).to_be_focused()
    page.get_by_role("button", name="Remove example 2").click()
    expect(page.get_by_label("Input of example 1")).to_be_focused()

    page.get_by_role("textbox", name="Name (to use").fill("backwards")
    page.get_by_role("button", name="Make adapter").click()
    expect(page.locator("#adapter-title")).to_have_text("backwards")
    expect(problem).to_be_hidden()
    record = api.get("/adapters/backwards").raise_for_status().json()
    assert record["id"] == page.locator("#adapter-id").inner_text()
    assert (record["prompts"], record["examples"]) == ([], [{"input": "cat", "output": "tac"}])


def test_an_example_task_fills_the_form_and_the_question(page: Page) -> None:
    page.get_by_role("button", name="Opposite", exact=True).click()
    expect(page.get_by_label("What should the model do?")).to_have_value(
        "Give a word that means the opposite of the given word."
    )
    expect(page.get_by_label("Input for both models")).to_have_value("ancient")


def test_says_in_words_why_the_service_refused(page: Page) -> None:
    page.get_by_label("What should the model do?").fill("x" * 401)
    page.get_by_role("button", name="Make adapter").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("have 401 characters, at most 400 are read")
    expect(problem).to_contain_text(re.compile("HTTP 413 · too_large · request [0-9a-f]{32}"))
    page.route("**/generate-adapter", lambda route: route.abort())
    page.get_by_role("button", name="Make adapter").click()
    expect(problem).to_contain_text("The service does not answer")
