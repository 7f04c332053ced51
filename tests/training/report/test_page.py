from html.parser import HTMLParser

import pytest

from training.report.figures import line_chart
from training.report.page import Picture, Section, Table, number, page

BAD = '<b>"x" & y</b>'


class Reader(HTMLParser):
    """Tags, text, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


@pytest.fixture
def html() -> str:
    picture = Picture("curve", line_chart({"a": [(0, 1.0), (1, 0.5)]}, x="step", y="loss"), BAD)
    table = Table(("name", BAD), [(BAD, 0.5), ("row", None)], BAD)
    return page(BAD, "made today", [Section(BAD, BAD, (f"python -m training {BAD}",), [picture, table])])


def test_whatever_stands_in_a_result_is_text_and_no_markup(html: str) -> None:
    reader = read(html)
    assert "b" not in reader.tags
    assert reader.text.count(BAD) >= 7


def test_the_page_needs_no_network_and_runs_nothing(html: str) -> None:
    reader = read(html)
    assert reader.fetched == []
    assert not {"script", "link", "iframe", "img"} & set(reader.tags)
    assert "@import" not in html
    assert "url(" not in html.partition("</style>")[0]


def test_the_page_fits_a_phone_and_has_a_light_and_a_dark_form(html: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    assert "overflow-x: auto" in html
    assert "<svg aria-label=" in html


def test_links_lead_to_the_sections(html: str) -> None:
    target = html.partition('<a href="#')[2].partition('"')[0]
    assert f'<section id="{target}">' in html


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (3, "3"), (1234567, "1,234,567"), (0.12345, "0.123"), (0.00123,
    "1.23e-03"), (12345.6, "12,346"), (-0.5, "-0.500")],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float | None, text: str) -> None:
    assert number(value) == text
