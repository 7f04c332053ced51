"""Takes the screenshots of the playground in `docs/images`, from a running service:

python -m tests.service.playground.screenshots --url http://127.0.0.1:8000

They show the service's store, so start with an empty one (`LLGBM_STORE_DIR`). The new adapters stay in it. `--key` is
the API key of a service that needs one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from tests.service.playground.browser import chromium

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "images"
LARGEST_BYTES = 300_000
PICTURES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    },
}
TASKS = {"desktop": ("Fix the grammar", "Extract to JSON", "Route a ticket"), "phone": ("Fix the grammar",)}
"""The example tasks that get adapters; the last one is shown."""
QUESTIONS = {
    "desktop": ("I was charged twice.", "The parcel arrived at the wrong house."),
    "phone": ("She go to school every days.",),
}
SLOW_MS = 600_000
"""Timeout; the real base may be slow."""


def main() -> None:
    """Take all screenshots.

    Raises:
        SystemExit: a file is too large for a document.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--key", default="", help="API key, if the service needs one")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for the screenshots")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name in PICTURES:
            path = arguments.folder / f"playground-{name}.png"
            _take(browser, arguments.url, arguments.key, name, path)
            sys.stdout.write(f"{path} {path.stat().st_size} bytes\n")
            if path.stat().st_size > LARGEST_BYTES:
                raise SystemExit(f"{path} is larger than {LARGEST_BYTES} bytes")


def _take(browser: Browser, url: str, key: str, name: str, path: Path) -> None:
    page = browser.new_page(**PICTURES[name], color_scheme="light", reduced_motion="reduce")
    page.set_default_timeout(SLOW_MS)
    expect.set_options(timeout=SLOW_MS)
    if key:
        page.add_init_script(f"sessionStorage.setItem('llgbm.key', {key!r})")
    page.goto(url)
    expect(page.locator("#readiness")).to_have_attribute("data-status", "ready")
    for task in TASKS[name]:
        page.get_by_role("button", name=task, exact=True).click()
        page.get_by_role("button", name="Make adapter").click()
        expect(page.locator("#adapter-title")).to_have_text(
            page.get_by_label("What should the model do?").input_value()
        )
        expect(page.locator(".heat")).to_be_visible()
    for question in QUESTIONS[name]:
        page.get_by_label("Question", exact=True).fill(question)
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    if name == "phone":
        page.locator("#adapter").evaluate("e => e.scrollIntoView({block: 'start'})")
    page.locator("#send").blur()
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    page.close()


if __name__ == "__main__":
    main()
