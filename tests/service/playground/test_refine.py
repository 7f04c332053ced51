"""Refining on examples: a job of the service, its progress, and the chat before and after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from service.models.loading import load_models
from tests.service.playground.browser import CONTRASTS, PASTE, answered, ask, completion
from tests.service.support.harness import LiveServer, live, make_settings, wait_until
from tests.service.support.jobs import LONG

pytestmark = pytest.mark.browser

TASK = "Route the ticket to a team."
ROWS = [("stolen card", "fraud"), ("my money", "billing"), ("it is slow", "support"), ("I want out", "sales")] * 2


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint_path: Path, tiny_base_path: Path, tiny_encoder_path: Path
) -> Iterator[LiveServer]:
    """With settings by which the process of a job finds the same base."""
    settings = make_settings(
        tmp_path_factory.mktemp("refining"),
        checkpoint=tiny_checkpoint_path,
        base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path),
        threads=1,
        refine_threads=1,
        refine_storage="float32",
    )
    with live(settings, load_models) as served:
        yield served


def fill(page: Page, rows: list[tuple[str, str]]) -> None:
    page.get_by_label("What should the model do?").fill(TASK)
    page.get_by_text("Examples and name").click()
    page.get_by_label("Input of example 1").evaluate(PASTE, "".join(f"{a}\t{b}\n" for a, b in rows))
    expect(page.locator("#example-rows li")).to_have_count(len(rows))


def begin_long(page: Page) -> None:
    """Begin a job that takes long enough to be disturbed."""

    def longer(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        body["method"] = LONG
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/fine_tuning/jobs", longer)
    fill(page, [(f"ticket {number}", ROWS[number % 4][1]) for number in range(60)])
    page.get_by_role("button", name="Refine on examples").click()
    expect(page.locator("#refine-state")).to_contain_text(re.compile(r"step \d+ of at most"))


def newest(api: httpx.Client) -> dict[str, Any]:
    job: dict[str, Any] = api.get("/v1/fine_tuning/jobs").raise_for_status().json()["data"][0]
    return job


def test_examples_refine_the_adapter_and_the_chat_shows_before_and_after(page: Page, api: httpx.Client) -> None:
    fill(page, ROWS)
    page.get_by_role("button", name="Refine on examples").click()
    expect(page.get_by_role("button", name="Refine on examples")).to_be_disabled()
    expect(page.locator("#adapter-tag")).to_have_text("refined from examples", timeout=90_000)
    job = newest(api)
    identity = page.locator("#adapter-id").inner_text()
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", identity)
    expect(page.locator("#refine-state")).to_contain_text(job["outcome"]["note"][:30])
    expect(page.locator("#adapter-refined")).to_contain_text(job["outcome"]["note"][:30])
    expect(page.locator("#refine-cancel")).to_be_hidden()
    assert api.get("/v1/files", params={"purpose": "fine-tune"}).json()["data"] == []  # the examples are gone

    events = api.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"limit": 100}).json()
    assert not events["has_more"]
    steps = {event["data"]["step"] for event in events["data"] if event["data"]}
    drawn = page.locator(".loss polyline").evaluate_all(
        "lines => lines.flatMap(line => line.getAttribute('points').split(' '))"
    )
    assert len(drawn) == len(steps) > 2
    expect(page.locator(".loss")).to_have_attribute("aria-label", re.compile(r"Training loss from \d.* to \d"))

    lanes = ("base", "before", "adapted")
    ask(page, "stolen card")
    base = api.get("/readyz").json()["base"]
    expected = tuple(completion(api, model, "stolen card") for model in (base, job["start"], identity))
    assert answered(page, lanes=lanes) == expected
    expect(page.locator(".who strong")).to_have_text(["Base", "Before refining", "After refining"])

    page.reload()  # what is known of the job is the service's
    expect(page.locator("#adapter-refined")).to_contain_text(job["outcome"]["note"][:30])
    expect(page.get_by_role("checkbox", name="Before refining")).to_be_checked()


def test_a_job_is_found_again_after_a_reload_and_cancelled(page: Page, api: httpx.Client) -> None:
    begin_long(page)
    page.unroute("**/v1/fine_tuning/jobs")
    page.reload()
    expect(page.locator("#refine-state")).to_contain_text(re.compile(r"step \d+ of at most"))
    assert [ratio for _, ratio in page.evaluate(CONTRASTS) if ratio < 4.5] == []
    page.locator("#refine").get_by_role("button", name="Cancel").click()
    expect(page.locator("#refine-state")).to_have_text("Cancelled; nothing of it is kept.")
    assert newest(api)["status"] == "cancelled"
    wait_until(lambda: api.get("/v1/files", params={"purpose": "fine-tune"}).json()["data"] == [])
    expect(page.get_by_role("button", name="Refine on examples")).to_be_enabled()
    page.reload()
    expect(page.locator("#readiness")).to_have_attribute("data-status", "ready")
    expect(page.locator("#refine")).to_be_hidden()


def test_a_connection_that_is_cut_is_made_again_and_a_file_that_stays_hides_no_result(
    page: Page, api: httpx.Client
) -> None:
    asked = 0

    def restarted(route: Route) -> None:
        """As a service that ends, and loads its models again."""
        nonlocal asked
        asked += 1
        if asked == 1:
            route.abort()
        elif asked == 2:
            route.fulfill(status=503, json={"error": {"message": "the models are still loading", "code": "loading"}})
        else:
            route.continue_()

    page.route("**/events?*", restarted)
    begin_long(page)
    assert asked == 3
    full = {"error": {"message": "the disk is full", "code": "insufficient_storage"}}
    page.route("**/v1/files/*", lambda route: route.fulfill(status=507, json=full))
    page.locator("#refine").get_by_role("button", name="Cancel").click()
    expect(page.locator("#refine-problem")).to_contain_text("The disk is full")
    expect(page.locator("#refine-state")).to_have_text("Cancelled; nothing of it is kept.")
    api.delete(f"/v1/files/{newest(api)['training_file']}").raise_for_status()


def test_says_in_words_what_refining_lacks_and_why_the_service_refused(page: Page, api: httpx.Client) -> None:
    page.get_by_role("button", name="Refine on examples").click()
    expect(page.locator("#prompt-problem")).to_contain_text("Refining learns from examples")
    fill(page, [("short", "a"), ("long " * 5000, "b")])
    page.get_by_role("button", name="Refine on examples").click()
    expect(page.locator("#refine-problem")).to_contain_text(re.compile(r"[Ll]ine 2.*HTTP 400", re.DOTALL))
    assert api.get("/v1/files", params={"purpose": "fine-tune"}).json()["data"] == []
    expect(page.get_by_role("button", name="Refine on examples")).to_be_enabled()

    page.reload()
    fill(page, [(f"ticket {number}", "a") for number in range(17)])
    page.get_by_role("button", name="Make adapter").click()
    expect(page.locator("#prompt-problem")).to_contain_text("at most 16 examples, and these are 17")
