"""The chat: base and adapter side by side."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.service.playground.browser import CAPITAL, PASTE, Pace, answered, ask, completion, make_adapter
from tests.service.support.harness import LiveServer, services_of, wait_until

pytestmark = pytest.mark.browser


def test_all_that_are_ticked_stream_what_the_api_answers(page: Page, api: httpx.Client) -> None:
    identity = make_adapter(page, CAPITAL)
    base = api.get("/readyz").json()["base"]
    page.get_by_label("Base + description").check()
    lanes = ("base", "told", "adapted")
    for question in ("Peru", "Chad"):
        ask(page, question)
        plain, told, adapted = answered(page, lanes=lanes)
        assert plain == completion(api, base, question)
        assert told == completion(api, base, f"{CAPITAL}\n\n{question}")
        assert adapted == completion(api, f"prompt:{CAPITAL}", question, context="auto")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".meta").last).to_contain_text(re.compile(r"12 tokens.*first in .*cut at max tokens"))
    expect(page.locator("#announcer")).to_contain_text(re.compile(r"Base: .*Base \+ description: .*Adapter: "))

    page.get_by_role("checkbox", name="Base", exact=True).uncheck()
    page.get_by_label("Base + description").uncheck()
    for context, model in (("none", identity), ("description", f"prompt:{CAPITAL}")):
        page.get_by_label("Text of the task for the adapter").select_option(context)
        ask(page, "Togo")
        more: dict[str, Any] = {} if context == "none" else {"context": context}
        assert answered(page, lanes=("adapted",)) == (completion(api, model, "Togo", **more),)
    page.get_by_role("checkbox", name="Adapter").uncheck()
    page.get_by_label("Question", exact=True).press("Enter")
    expect(page.locator("#chat-problem")).to_contain_text("Tick who shall answer")
    expect(page.get_by_role("checkbox", name="Adapter")).to_be_focused()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_label("Question", exact=True)).to_be_focused()


def test_says_what_auto_did_as_the_api_does(page: Page, api: httpx.Client) -> None:
    make_adapter(page, CAPITAL)
    told = api.post("/generate-adapter", json={"prompt": CAPITAL}).raise_for_status().json()["auto"]
    words = {
        "none": "no text of the task",
        "description": "description as text",
        "examples": "description and examples as text",
    }
    used = f"{words[told['context_used']]}, adapter ×{told['scale']:g}"
    expect(page.locator("#auto-choice")).to_have_text(f"Auto in the chat: {used}")
    ask(page, "Peru")
    answered(page)
    expect(page.locator(".answer[data-lane=adapted] .meta")).to_contain_text(f"auto: {used}")
    expect(page.locator(".answer[data-lane=base] .meta")).not_to_contain_text("adapter")
    page.get_by_label("Scale of the effect").press("End")
    expect(page.locator("#announcer")).to_contain_text("scale 2 ready")
    ask(page, "Chad")
    answered(page)
    expect(page.locator(".answer[data-lane=adapted] .meta").last).to_contain_text("no text of the task, adapter ×2")
    expect(page.locator(".answer[data-lane=adapted] .meta").last).not_to_contain_text("auto")


def test_examples_are_sent_with_the_question_and_offered_as_text(page: Page, api: httpx.Client) -> None:
    examples = [{"input": "Peru", "output": "Lima"}, {"input": "Chad", "output": "N'Djamena"}]
    page.get_by_text("Examples and name").click()
    expect(page.locator("#context option[value=examples]")).to_be_disabled()
    page.get_by_label("Input of example 1").evaluate(PASTE, "Peru\tLima\nChad\tN'Djamena")
    make_adapter(page, CAPITAL)
    page.get_by_label("Base + description").check()
    with page.expect_request(lambda request: f"prompt:{CAPITAL}" in (request.post_data or "")) as sent:
        ask(page, "Mali")
    body = sent.value.post_data_json
    assert body is not None
    assert (body["examples"], body["context"]) == (examples, "auto")
    answered(page, lanes=("base", "told", "adapted"))
    expect(page.locator(".who").nth(1)).to_have_text("Base + description and 2 examples")
    page.get_by_label("Text of the task for the adapter").select_option("examples")
    ask(page, "Mali")
    _, told, adapted = answered(page, lanes=("base", "told", "adapted"))
    assert adapted == completion(api, f"prompt:{CAPITAL}", "Mali", context="examples", examples=examples)
    turns = [
        {"role": role, "content": content}
        for example in examples
        for role, content in (("user", f"{CAPITAL}\n\n{example['input']}"), ("assistant", example["output"]))
    ]
    turns.append({"role": "user", "content": f"{CAPITAL}\n\nMali"})
    assert told == completion(api, api.get("/readyz").json()["base"], "", messages=turns)


def test_earlier_turns_are_sent_when_that_is_wanted(page: Page) -> None:
    make_adapter(page, CAPITAL)
    ask(page, "Peru")
    first = answered(page)
    page.get_by_label("Send the earlier turns too").check()
    sent: dict[str, Any] = {}
    page.on("request", lambda request: sent.update(_by_model(request.post_data)) if "/v1/" in request.url else None)
    ask(page, "Chad")
    answered(page)
    for model, messages in sent.items():
        lane = 1 if model == f"prompt:{CAPITAL}" else 0
        assert messages == [
            {"role": "user", "content": "Peru"},
            {"role": "assistant", "content": first[lane]},
            {"role": "user", "content": "Chad"},
        ]
    assert len(sent) == 2


def _by_model(body: str | None) -> dict[str, Any]:
    content = json.loads(body or "{}")
    return {content["model"]: content["messages"]}


def test_stop_ends_both_answers_here_and_in_the_service(page: Page, server: LiveServer, pace: Pace) -> None:
    make_adapter(page, CAPITAL)
    pace.pause = 0.1
    ask(page, "Peru", max_tokens=2000)
    expect(page.locator(".answer[data-state=streaming]")).to_have_count(2)
    page.get_by_role("button", name="Stop").click()
    assert all(answered(page, "stopped"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    metrics = services_of(server.app).engine
    wait_until(lambda: not metrics.rows, 60)


def test_an_error_in_the_middle_of_an_answer_is_shown_below_what_has_come(page: Page, pace: Pace) -> None:
    make_adapter(page, CAPITAL)
    pace.pause = 0.2  # the step fails after both answers have begun and before either has ended
    ask(page, "Peru", max_tokens=50)
    for lane in ("base", "adapted"):
        expect(page.locator(f".turn .answer[data-lane={lane}] .answer-text").last).not_to_be_empty()
    pace.fail_in = 0
    answered(page, "failed")
    pace.pause = 0.0
    problems = page.locator(".turn .problem")
    expect(problems).to_have_count(2)
    expect(problems.first).to_contain_text("An error inside the service")
    ask(page, "Chad")
    assert all(answered(page))

    start = 'data: {"choices": [{"index": 0, "delta": {"content": "Half an ans"}}]}\n\n'
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=start, headers={"Content-Type": "text/event-stream"})
    )
    ask(page, "Mali")
    assert answered(page, "failed") == ("Half an ans", "Half an ans")
    expect(problems.last).to_contain_text("The connection ended before the answer was complete")


def test_asks_again_with_the_adapter_that_is_shown_now(page: Page, api: httpx.Client) -> None:
    ask_button = page.get_by_role("button", name="Send")
    page.get_by_label("Question", exact=True).fill("Peru")
    ask_button.click()
    expect(page.locator("#chat-problem")).to_contain_text("There is no adapter to ask yet")
    expect(page.get_by_label("What should the model do?")).to_be_focused()

    first = make_adapter(page, CAPITAL)
    ask(page, "Peru")
    answered(page)
    page.get_by_label("Scale of the effect").press("End")
    expect(page.locator("#adapter-id")).not_to_have_text(first)
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".turn")).to_have_count(2)
    _, adapted = answered(page)
    assert adapted == completion(api, page.locator("#adapter-id").inner_text(), "Peru")
    expect(page.locator(".who").last).to_have_text(f"Adapter ×2 {CAPITAL}")


def test_escape_stops_the_answers(page: Page, pace: Pace) -> None:
    make_adapter(page, CAPITAL)
    pace.pause = 0.1
    ask(page, "Peru", max_tokens=2000)
    expect(page.locator(".answer[data-state=streaming]")).to_have_count(2)
    page.keyboard.press("Escape")
    answered(page, "stopped")
    expect(page.locator("#announcer")).to_have_text("Stopped")
