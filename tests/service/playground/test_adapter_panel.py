"""The panel of an adapter: heat map, scale and downloads."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.service.playground.browser import CAPITAL, make_adapter

pytestmark = pytest.mark.browser


def test_the_slider_makes_the_adapter_at_another_scale(page: Page, api: httpx.Client) -> None:
    first = make_adapter(page, CAPITAL)
    slider = page.get_by_label("Scale of the effect")
    slider.focus()
    slider.press("ArrowRight")
    identity = page.locator("#adapter-id")
    expect(identity).not_to_have_text(first)
    expect(slider).to_be_focused()
    record = api.get(f"/adapters/{identity.inner_text()}").raise_for_status().json()
    assert (record["scale"], record["prompts"]) == (1.1, [CAPITAL])

    page.get_by_label("Scale, exactly").fill("-0.5")
    page.get_by_label("Scale, exactly").press("Enter")
    expect(page.locator("#announcer")).to_contain_text("scale -0.5 ready")
    record = api.get(f"/adapters/{identity.inner_text()}").raise_for_status().json()
    assert record["scale"] == -0.5
    page.get_by_label("Scale, exactly").fill("1")
    page.get_by_label("Scale, exactly").press("Enter")
    expect(identity).to_have_text(first)


def test_a_new_name_of_the_adapter_that_is_shown_is_seen(page: Page) -> None:
    identity = make_adapter(page, "Name the capital city.")  # other tests find their adapter by its prompt
    page.get_by_text("Examples and name").click()
    page.get_by_role("textbox", name="Name (to use").fill("capitals")
    page.get_by_role("button", name="Make adapter").click()
    expect(page.locator("#adapter-title")).to_have_text("capitals")
    expect(page.locator("#adapter-id")).to_have_text(identity)


def test_the_heat_map_is_walked_with_the_arrow_keys(page: Page, api: httpx.Client) -> None:
    identity = make_adapter(page, CAPITAL)
    norms = api.get(f"/adapters/{identity}").json()["norms"]
    cells = page.locator(".heat tbody td")
    assert page.locator(".heat td[tabindex='0']").count() == 1
    cells.first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    module = list(norms)[1]
    readout = page.locator(".readout")
    expect(readout).to_contain_text(f"{module}, layer {len(norms[module]) - 1}: ")
    assert float(readout.inner_text().split(": ")[1]) == pytest.approx(norms[module][-1], rel=0.01)


def test_downloads_are_the_files_of_the_api(page: Page, api: httpx.Client) -> None:
    identity = make_adapter(page, CAPITAL)
    for label, path in {"safetensors": "adapter_model.safetensors", "PEFT folder": "archive"}.items():
        with page.expect_download() as download:
            page.get_by_role("link", name=label).click()
        assert download.value.path().read_bytes() == api.get(f"/adapters/{identity}/{path}").content
