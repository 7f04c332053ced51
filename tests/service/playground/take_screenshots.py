"""Takes the pictures of the playground in `docs/images`, from a service that runs:

python -m tests.service.playground.take_screenshots --url http://127.0.0.1:8000

The adapters that it asks for stay in the service's store. `--key` is for a service that wants one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.service.playground.browser import DESKTOP, PHONE, chromium

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "images"
LARGEST_BYTES = 200_000
PICTURES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": DESKTOP, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True, "device_scale_factor": 2},
}
TASKS = ("Past tense", "Capital city", "Booking time")
QUESTIONS = ("A table for two at half past eight, please.", "Could we move our booking to 18:45? It was for Lind.")


def main() -> None:
    """Take all pictures.

    Raises:
        SystemExit: one is larger than a document should carry.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service runs")
    parser.add_argument("--key", default="", help="API key, if the service wants one")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, options in PICTURES.items():
            path = arguments.folder / f"playground-{name}.png"
            _take(browser, arguments.url, arguments.key, path, options)
            sys.stdout.write(f"{path} {path.stat().st_size} bytes\n")
            if path.stat().st_size > LARGEST_BYTES:
                raise SystemExit(f"{path} is larger than {LARGEST_BYTES} bytes")


def _take(browser: Browser, url: str, key: str, path: Path, options: dict[str, Any]) -> None:
    page = browser.new_page(**options, reduced_motion="reduce")
    page.set_default_timeout(600_000)  # the real base may be slow on the machine that documents it
    if key:
        page.add_init_script(f"sessionStorage.setItem('llgbm.key', {key!r})")
    page.goto(url)
    expect(page.locator("#readiness")).to_have_attribute("data-status", "ready")
    for task in TASKS:
        page.get_by_role("button", name=task, exact=True).click()
        page.get_by_role("button", name="Make adapter").click()
        expect(page.locator("#adapter-title")).to_have_text(
            page.get_by_label("What should the model do?").input_value()
        )
        expect(page.locator(".heat")).to_be_visible()
    page.get_by_text("Options").click()
    page.get_by_label("Max tokens").fill("32")
    page.get_by_text("Options").click()
    for question in QUESTIONS:
        _ask(page, question)
    if "has_touch" in options:
        page.locator("#adapter").evaluate("e => e.scrollIntoView({block: 'start'})")
    page.locator("#prompt").blur()
    page.screenshot(path=path)
    page.close()


def _ask(page: Page, question: str) -> None:
    page.get_by_label("Input for both models").fill(question)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=600_000)


if __name__ == "__main__":
    main()
