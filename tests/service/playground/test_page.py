"""The page as a whole: API keys, states of the service, security and accessibility."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from service.models.loading import LoadModels
from tests.service.playground.browser import (
    CAPITAL,
    CONTRASTS,
    DESKTOP,
    NASTY,
    PHONE,
    answered,
    ask,
    give_key,
    make_adapter,
    playground,
    snippet,
)
from tests.service.support.harness import LiveServer, live, make_settings

pytestmark = pytest.mark.browser

KEY = "a key of the tests"


def test_asks_for_the_key_keeps_it_in_the_tab_and_sends_it_with_everything(
    browser: Browser, tmp_path: Path, load: LoadModels
) -> None:
    settings = make_settings(tmp_path, api_key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),))
    with live(settings, load) as server, playground(browser, server) as page:
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("needs an API key")
        give_key(page, "pasted → with more")
        expect(dialog).to_contain_text("no characters beyond ASCII")
        give_key(page, "another one")
        expect(dialog).to_contain_text("not known here")
        give_key(page, KEY)
        expect(dialog).to_be_hidden()
        identity = make_adapter(page, CAPITAL)
        ask(page, "Peru")
        assert all(answered(page))
        with page.expect_download() as download:
            page.get_by_role("link", name="safetensors").click()
        header = {"Authorization": f"Bearer {KEY}"}
        content = httpx.get(f"{server.url}/adapters/{identity}/adapter_model.safetensors", headers=header).content
        assert download.value.path().read_bytes() == content
        assert KEY not in snippet(page, "curl")
        assert "$LLGBM_API_KEY" in snippet(page, "curl")

        page.reload()
        expect(page.locator("#adapter-id")).to_have_text(identity)
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[KEY], 0, ""]
        page.get_by_role("button", name="API key").click()
        page.get_by_role("button", name="Forget key").click()
        page.get_by_role("button", name="Reload").click()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#library-problem")).to_contain_text("HTTP 401")


def test_asks_for_the_key_too_where_even_its_readiness_needs_one(
    browser: Browser, tmp_path: Path, load: LoadModels
) -> None:
    settings = make_settings(
        tmp_path, api_key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),), public_paths=("/", "/static/*")
    )
    with live(settings, load) as server, playground(browser, server, key=KEY) as page:
        expect(page.locator("#library-empty")).to_be_visible()
        page.evaluate("sessionStorage.clear()")
        page.reload()
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#readiness")).to_have_text(re.compile("Needs an API key"))
        page.wait_for_event("response", lambda response: response.url.endswith("/readyz"))
        expect(dialog).to_be_hidden()  # without a key, the page does not ask again
        page.get_by_role("button", name="API key").click()
        give_key(page, KEY)
        expect(page.locator("#readiness")).to_have_attribute("data-status", "ready")
        expect(page.locator("#library-empty")).to_be_visible()


def test_says_that_the_service_is_loading_and_goes_on_when_it_is_ready(browser: Browser, server: LiveServer) -> None:
    with playground(browser, server) as page:
        state = {"status": "loading", "reason": "reading the generator", "base": None, "generator": None}
        page.route("**/readyz", lambda route: route.fulfill(status=503, json=state))
        page.reload()
        expect(page.locator("#readiness")).to_have_text(re.compile("Loading: reading the generator"))
        page.unroute("**/readyz")
        expect(page.locator("#readiness")).to_have_text(re.compile("Ready"))
        expect(page.locator("#base-name")).to_have_text(httpx.get(f"{server.url}/readyz").json()["base"])


def test_what_users_write_is_text_and_never_html(page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    make_adapter(page, NASTY)
    ask(page, NASTY)
    answered(page)
    expect(page.locator("#adapter-list .name").first).to_have_text(NASTY)
    assert page.locator("img").count() == 1


def test_the_browser_holds_the_page_to_its_policy(browser: Browser, server: LiveServer) -> None:
    with playground(browser, server, expected="TrustedHTML") as page:
        attempt = "() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (e) { return e.name; } }"
        assert page.evaluate(attempt) == "TypeError"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_reads_well_on_a_phone_and_a_desk_by_day_and_night(
    browser: Browser, server: LiveServer, scheme: str, size: dict[str, int]
) -> None:
    with playground(browser, server, viewport=size, color_scheme=scheme, has_touch=size is PHONE) as page:
        make_adapter(page, "A long-word task: Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenverordnung.")
        ask(page, "Peru " * 30)
        answered(page)
        page.get_by_text("Examples and name").click()
        page.locator("#adapter-list input").first.check()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 50
        assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, input, summary, textarea, a.button, .jump a")]
                .filter((e) => e.checkVisibility())
                .map((e) => [e.textContent || e.id || e.ariaLabel, e.getBoundingClientRect()])
                .filter(([, box]) => box.height < 16 || box.width < 16).map(([name]) => name)"""
        )
        assert small == []


def test_every_control_has_a_name_and_headings_are_in_order(page: Page) -> None:
    make_adapter(page, CAPITAL)
    ask(page, "Peru")
    answered(page)
    page.get_by_text("Examples and name").click()
    page.locator("#adapter-list input").first.check()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "checkbox", "textbox", "slider", "spinbutton", "link", "tab", "grid", "dialog", "region"}
    nodes = [node for node in tree if node.get("role", {}).get("value") in controls]
    assert len(nodes) > 30
    assert [node for node in nodes if not node.get("name", {}).get("value")] == []
    levels = [int(tag[1]) for tag in page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(e => e.tagName)")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    names = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(names) == len(set(names))
