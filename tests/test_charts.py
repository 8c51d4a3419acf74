"""Charts are well-formed SVG whose marks lie where the numbers say."""

from xml.etree import ElementTree

import pytest

from mtrec import charts
from mtrec.charts import Bar, Box, Line, Mark

SVG = "{http://www.w3.org/2000/svg}"


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def _form(value: float) -> str:
    return f"{value:.2f}"


def test_bars_are_as_long_as_their_values() -> None:
    root = _parse(charts.bars([Bar("x", 4.0), Bar("y", 1.0)], title="t", form=_form))
    long, short = (float(rect.get("width", "0")) for rect in root.iter(f"{SVG}rect"))
    assert long == pytest.approx(4 * short, abs=0.2)


def test_whiskers_reach_from_low_to_high() -> None:
    row = Bar("x", 2.0, low=1.0, high=3.0)
    root = _parse(charts.dots([row], title="t", form=_form, zero=True))
    circle = next(root.iter(f"{SVG}circle"))
    whisker = next(e for e in root.iter(f"{SVG}line") if "whisker" in e.get("class", ""))
    middle = (float(whisker.get("x1", "0")) + float(whisker.get("x2", "0"))) / 2
    assert float(circle.get("cx", "0")) == pytest.approx(middle, abs=0.1)


def test_labels_are_escaped() -> None:
    svg = charts.bars([Bar("<script>&", 1.0)], title='"', form=_form)
    assert "<script>" not in svg
    assert any("<script>&" in (text.text or "") for text in _parse(svg).iter(f"{SVG}text"))


def test_a_higher_value_lies_higher_up() -> None:
    root = _parse(charts.curves([Line("x", [(1, 0.1), (2, 0.9)])], title="t", form=_form))
    points = next(root.iter(f"{SVG}polyline")).get("points", "").split()
    (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points)
    assert x1 < x2
    assert y1 > y2


def test_a_trade_off_goes_from_point_to_point_and_names_each() -> None:
    marks = [Mark("0", 0.2, 0.9), Mark("0.5", 0.4, 0.8), Mark("<1", 0.6, 0.1)]
    svg = charts.trade_off(marks, title="t", across_name="far", up_name="good", form=_form)
    root = _parse(svg)
    dots = [(float(c.get("cx", "0")), float(c.get("cy", "0"))) for c in root.iter(f"{SVG}circle")]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y2 - y1 == pytest.approx(7 * (y1 - y0), abs=0.5)
    line = next(root.iter(f"{SVG}polyline")).get("points", "").split()
    assert [tuple(map(float, point.split(","))) for point in line] == dots
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"0", "0.5", "<1", "far", "good"} <= set(texts)
    assert "0.5: far 0.40, good 0.80" in [title.text for title in root.iter(f"{SVG}title")]


@pytest.mark.parametrize(
    "svg",
    [
        charts.trade_off([], title="t", across_name="x", up_name="y", form=_form),
        charts.trade_off([Mark("0", 0, 0)], title="t", across_name="x", up_name="y", form=_form),
        charts.bars([], title="t", form=_form),
        charts.bars([Bar("x", 0.0)], title="t", form=_form),
        charts.dots([], title="t", form=_form),
        charts.dots([Bar("x", 0.5, 0.5, 0.5)], title="t", form=_form),
        charts.curves([], title="t", form=_form),
        charts.curves([Line("x", [(1, 2.0)])], title="t", form=_form, mark=1),
        charts.reliability([Line("x", [(0.5, 0.5)])], [(0.4, 0.6, 3)], title="t"),
        charts.boxes([Box(3.0, [1, 2, 3, 4, 5], 3.0, 9)], low=1, high=5, title="t"),
    ],
)
def test_every_chart_is_well_formed_with_little_or_no_data(svg: str) -> None:
    assert _parse(svg).tag == f"{SVG}svg"
    assert "nan" not in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]), (-3.0, 9.0, [0.0, 5.0]), (2.0, 2.0, [2.0])],
)
def test_ticks_are_round_numbers_within_the_axis(
    low: float, high: float, expected: list[float]
) -> None:
    assert charts._ticks(low, high, 4) == expected
