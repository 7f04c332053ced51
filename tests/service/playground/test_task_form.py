"""The form for a task."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.service.playground.browser import PASTE

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
    page.get_by_role("button", name="Extract to JSON", exact=True).click()
    expect(page.get_by_label("What should the model do?")).to_have_value(re.compile("as JSON with the keys"))
    expect(page.get_by_label("Question", exact=True)).to_have_value("Marta works as a nurse in Prague.")
    expect(page.get_by_label("Output of example 3")).to_be_visible()
    page.get_by_role("button", name="Route a ticket", exact=True).click()
    expect(page.get_by_label("Question", exact=True)).to_have_value("I was charged twice.")
    expect(page.locator("#example-rows li")).to_have_count(1)
    expect(page.get_by_label("Input of example 1")).to_have_value("")


PARSE = "async text => (await import('/static/js/task/parse_examples.js')).parseExamples(text)"
ONE = [{"input": "a, b", "output": "c"}]


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        ("a, b\tc\r\n", ONE),
        ("a, b;c\nd;e", [*ONE, {"input": "d", "output": "e"}]),
        ('\ufeff"a, b",c\n\n', ONE),
        ('id,Question,Answer\n1,"a, b",c', ONE),
        ('{"input": "a, b", "output": "c"}', ONE),
        ('{"completion": "c", "prompt": "a, b"}\n', ONE),
        ('{"messages": [{"role": "user", "content": "a, b"}, {"role": "assistant", "content": "c"}]}', ONE),
        ('{"text": "x", "label": {"n": 1}}', [{"input": "x", "output": '{"n":1}'}]),
        ('"say ""hi""\nor so",x', [{"input": 'say "hi"\nor so', "output": "x"}]),
        ('5" nail,metal\n6" nail,metal', [{"input": f'{n}" nail', "output": "metal"} for n in (5, 6)]),
    ],
)
def test_reads_examples_in_the_forms_that_people_have(page: Page, text: str, examples: list[dict[str, str]]) -> None:
    assert page.evaluate(PARSE, text) == examples


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("only a word\nand one more", "needs two columns"),
        ("a,b\nc,d,e", "Line 2 has 3 columns"),
        ("a\tb\nc\t", "Line 2: its output is empty"),
        ('a,b\n"c,d', "Line 2 has a quotation mark"),
        ('{"input": "a", "output": "b"}\n{"input": "a"', "Line 2 is not JSON"),
        ('{"input": "a"}', 'Line 1 has no "input" and "output"'),
        ('{"messages": [{"role": "user", "content": "a"}]}', "Line 1: its messages are not"),
        ("".join(f"{i}\t{i}\n" for i in range(501)), "501 examples, and the form takes at most 500"),
    ],
)
def test_pasted_examples_that_are_wrong_are_refused_by_line(page: Page, text: str, reason: str) -> None:
    page.get_by_text("Examples and name").click()
    page.get_by_label("Input of example 1").evaluate(PASTE, text)
    expect(page.locator("#example-problem")).to_contain_text(reason)
    expect(page.locator("#example-rows li")).to_have_count(1)


def test_text_of_one_field_is_left_to_it_and_lines_of_a_text_stay(page: Page) -> None:
    page.get_by_text("Examples and name").click()
    page.get_by_label("Output of example 1").evaluate(PASTE, '{"input": "Ana", "city": "Rome"}')
    page.get_by_label("Input of example 1").evaluate(PASTE, '{"name": "Ana"}')
    expect(page.locator("#example-problem")).to_be_hidden()
    expect(page.get_by_label("Input of example 1")).to_have_value("")  # the browser fills in real text
    page.get_by_label("Input of example 1").evaluate(PASTE, '"two\nlines",x')
    expect(page.get_by_label("Input of example 1")).to_have_value("two\nlines")


def test_examples_are_pasted_dropped_and_opened_from_a_file(page: Page, api: httpx.Client) -> None:
    page.get_by_text("Examples and name").click()
    page.get_by_label("Input of example 1").evaluate(PASTE, "cat\ttac\ndog\tgod")
    expect(page.locator("#announcer")).to_have_text("2 examples added")
    expect(page.get_by_label("Input of example 2")).to_be_focused()
    page.locator("#example-file").set_input_files(
        {"name": "more.csv", "mimeType": "text/csv", "buffer": b'input,output\n"ox, or so","os ro ,xo"\n'}
    )
    expect(page.get_by_label("Output of example 3")).to_have_value("os ro ,xo")
    page.locator("#examples").evaluate(
        """area => {
          const data = new DataTransfer();
          data.items.add(new File(['{"input": "hen", "output": "neh"}'], "rows.jsonl"));
          area.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }"""
    )
    expect(page.get_by_label("Input of example 4")).to_have_value("hen")
    page.get_by_role("button", name="Make adapter").click()
    expect(page.locator("#adapter-title")).to_have_text("cat → tac")
    record = api.get(f"/adapters/{page.locator('#adapter-id').inner_text()}").raise_for_status().json()
    assert [example["output"] for example in record["examples"]] == ["tac", "god", "os ro ,xo", "neh"]


def test_says_in_words_why_the_service_refused(page: Page) -> None:
    page.get_by_label("What should the model do?").fill("x" * 401)
    page.get_by_role("button", name="Make adapter").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("have 401 characters, at most 400 are read")
    expect(problem).to_contain_text(re.compile("HTTP 413 · too_large · request [0-9a-f]{32}"))
    page.route("**/generate-adapter", lambda route: route.abort())
    page.get_by_role("button", name="Make adapter").click()
    expect(problem).to_contain_text("The service does not answer")
