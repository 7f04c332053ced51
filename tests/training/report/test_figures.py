import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from training.report.figures import Drawing, bar_chart, heat_map, line_chart, scatter_map


def lines() -> Drawing:
    return line_chart({"fit <a>": [(0, 2.0), (1, 1.0)], "other": [(0, 1.5)]}, x="step", y="loss")


def points() -> Drawing:
    return scatter_map([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], ["x", "y", "x"], title="a map")


def heat() -> Drawing:
    return heat_map({"q_proj": {"0": 1.0, "10": 2.0, "9": 0.5}, "v_proj": {"0": 3.0}}, x="layer", title="norms")


def bars() -> Drawing:
    return bar_chart(
        {"weight": {"train": 0.5, "held": 0.2}, "delta": {"train": 0.7}}, {"weight": {"train": 0.1}}, x="cosine"
    )


DRAWINGS: list[Callable[[], Drawing]] = [lines, points, heat, bars]
TEXTS = {"lines": "fit <a>", "points": "a map", "heat": "q_proj", "bars": "weight"}


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_drawing_is_one_svg_element_with_its_text_as_text(draw: Callable[[], Drawing]) -> None:
    svg = draw().svg
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)  # the page decides
    assert TEXTS[draw.__name__] in "".join(root.itertext())


@pytest.mark.parametrize("draw", DRAWINGS)
def test_text_and_axes_take_the_colour_of_the_page(draw: Callable[[], Drawing]) -> None:
    svg = draw().svg
    assert "currentColor" in svg
    assert "#123457" not in svg
    for text in re.findall(r"<text[^>]*>", svg):
        assert "currentColor" in text


@pytest.mark.parametrize("draw", DRAWINGS)
def test_nothing_is_fetched(draw: Callable[[], Drawing]) -> None:
    for name, value in re.findall(r'(href|src|url)[=(]"?([^")]*)', draw().svg):
        assert value.startswith(("#", "data:")), (name, value)


@pytest.mark.parametrize("draw", DRAWINGS)
def test_the_png_is_a_png_and_both_are_the_same_every_time(draw: Callable[[], Drawing]) -> None:
    first, second = draw(), draw()
    assert first.png.startswith(b"\x89PNG")
    assert first == second


def test_two_drawings_on_one_page_do_not_share_names() -> None:
    names = [set(re.findall(r' id="([^"]*)"', draw().svg)) for draw in DRAWINGS]
    assert not set.intersection(names[0], names[1])
    assert len(set().union(*names)) == sum(map(len, names))


def test_columns_of_a_heat_map_are_in_order_of_number() -> None:
    texts = "".join(ElementTree.fromstring(heat().svg).itertext())
    assert re.search(r"0\s+9\s+10", texts)


def test_more_curves_than_a_legend_holds_have_none() -> None:
    many = line_chart({f"run {i}": [(0, 1.0), (1, float(i))] for i in range(12)}, x="step", y="loss")
    assert "run 3" not in many.svg
