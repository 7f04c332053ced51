"""The list of adapters, and the form that combines them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from service.models.loading import LoadModels
from tests.service.playground.browser import make_adapter, playground
from tests.service.support.harness import live, make_settings

pytestmark = pytest.mark.browser


def test_the_list_is_paged_opened_and_deleted_from(browser: Browser, tmp_path: Path, load: LoadModels) -> None:
    with live(make_settings(tmp_path), load) as server, httpx.Client(base_url=server.url, timeout=60) as api:
        ids = [api.post("/generate-adapter", json={"prompt": f"Task {i}"}).json()["id"] for i in range(23)]
        with playground(browser, server) as page:
            rows = page.locator("#adapter-list li")
            expect(rows).to_have_count(20)
            page.get_by_role("button", name="Show more").click()
            expect(rows).to_have_count(23)
            expect(rows.nth(20).locator(".open")).to_be_focused()
            expect(page.get_by_role("button", name="Show more")).to_be_hidden()

            rows.last.locator(".open").click()
            expect(page.locator("#adapter-id")).to_have_text(ids[0])
            page.get_by_role("button", name="Delete Task 0", exact=True).click()
            page.get_by_role("button", name="Keep").click()
            assert api.get(f"/adapters/{ids[0]}").status_code == 200
            page.get_by_role("button", name="Delete Task 0", exact=True).click()
            page.get_by_role("dialog").get_by_role("button", name="Delete").click()
            expect(rows).to_have_count(22)
            expect(rows.last.locator(".open")).to_be_focused()
            expect(page.locator("#adapter .empty")).to_be_visible()
            assert api.get(f"/adapters/{ids[0]}").status_code == 404


def test_the_adapter_that_was_opened_last_is_shown_whatever_is_answered_last(page: Page, api: httpx.Client) -> None:
    ids = [api.post("/generate-adapter", json={"prompt": f"Slow task {i}"}).json()["id"] for i in range(2)]
    page.get_by_role("button", name="Reload").click()
    held: list[Route] = []
    page.route(f"**/adapters/{ids[0]}", lambda route: held.append(route))
    page.locator("#adapter-list .open", has_text="Slow task 0").click()
    page.locator("#adapter-list .open", has_text="Slow task 1").click()
    expect(page.locator("#adapter-id")).to_have_text(ids[1])
    with page.expect_response(f"**/adapters/{ids[0]}") as answer:
        held[0].continue_()
    answer.value.finished()
    page.evaluate("() => new Promise((done) => setTimeout(done))")
    expect(page.locator("#adapter-id")).to_have_text(ids[1])
    assert page.url.endswith(f"#{ids[1]}")


def test_adapters_are_combined_and_the_combination_is_scaled(page: Page, api: httpx.Client) -> None:
    for prompt in ("First of two tasks.", "Second of two tasks."):
        make_adapter(page, prompt)
        page.get_by_label(f"Combine {prompt}").check()
    page.get_by_label("Weight of First of two tasks.").fill("9")
    page.get_by_role("button", name="Combine", exact=True).click()
    expect(page.locator("#combine .problem")).to_contain_text("between −4 and 4")
    page.get_by_label("Weight of First of two tasks.").fill("0.5")
    page.get_by_role("button", name="Combine", exact=True).click()
    expect(page.locator("#adapter-title")).to_have_text("Combination")
    expect(page.locator("#combine")).to_be_hidden()
    identity = page.locator("#adapter-id")
    combined = identity.inner_text()
    before = api.get(f"/adapters/{combined}").raise_for_status().json()
    assert before["source"] == "composed"

    page.get_by_label("Scale of the effect").press("End")
    expect(identity).not_to_have_text(combined)
    after = api.get(f"/adapters/{identity.inner_text()}").raise_for_status().json()
    for module, norms in before["norms"].items():
        assert after["norms"][module] == pytest.approx([2 * norm for norm in norms], rel=1e-3)
    page.get_by_label("Scale, exactly").fill("1")
    page.get_by_label("Scale, exactly").press("Enter")
    expect(identity).to_have_text(combined)
