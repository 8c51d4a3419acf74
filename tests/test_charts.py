"""Charts are well-formed SVG whose marks lie where the numbers say."""

from xml.etree import ElementTree

import pytest

from mtrec import charts
from mtrec.charts import Bar, Box, Line

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


@pytest.mark.parametrize(
    "svg",
    [
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
