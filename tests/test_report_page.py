"""The page: one well-formed file without network or script that shows what the report says."""

import copy
from html.parser import HTMLParser
from typing import Any

import pytest
from test_harm import judged
from test_report import _histories, _report, samples

from mtrec.report_page import render_html
from mtrec.twins_page import render_twins


class _Checker(HTMLParser):
    """Collect texts and check that tags are closed in order."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _full() -> Any:
    report = _report(_histories())
    report["bundle"] = {"version": "20260101-000000-abc", "encoder": "hashing", "epoch": 2}
    report["curves"] = [
        {
            "epoch": 1,
            "loss": 2.0,
            "loss/click": 1.0,
            "validation/click/ndcg@3": 0.1,
            "seconds": 1.5,
        },
        {
            "epoch": 2,
            "loss": 1.5,
            "loss/click": 0.8,
            "validation/click/ndcg@3": 0.2,
            "seconds": 1.5,
        },
    ]
    return report


def _parse(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    checker.close()
    return checker


def test_page_is_well_formed_and_needs_no_network_or_script() -> None:
    page = render_html(_full())
    checker = _parse(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_page_shows_figures_curves_calibration_and_protocol() -> None:
    text = _parse(render_html(_full())).text
    for part in ("0.9385", "RMSE", "popularity", "Learning", "Calibration", "Protocol", "3 s"):
        assert part in text
    assert "said before" in text
    assert "-50 %" in text


def test_page_shows_the_removal_test_and_the_dial_with_its_numbers() -> None:
    page = render_html({**_full(), **samples()})
    checker = _parse(page)
    assert checker.open == []
    for part in (
        *("88 %", "7 of 8", "0 of 0", "10 users, 2 of whom"),
        *("6 of 60 users", "0.4321", "0.6789", "NDCG@3", "Diversity@3"),
    ):
        assert part in checker.text
    assert "<title>first reason: 88 % [53 %, 98 %]</title>" in page
    assert "<title>0.5: Diversity@3 0.679, NDCG@3 0.321</title>" in page
    assert "<title>control" not in page


def test_a_dial_without_diversity_is_not_drawn() -> None:
    report = {**_full(), **samples()}
    for point in report["dial"]["points"]:
        del point["diversity@3"]
    assert "What does diversity cost" not in render_html(report)


def test_names_from_the_data_are_escaped() -> None:
    report = _full()
    report["protocol"]["data"] = "<b>&"
    assert "<b>&<" not in render_html(report)
    assert "<b>&" in _parse(render_html(report)).text


@pytest.mark.parametrize("part", ["curves", "calibration", "predicted_by_truth", "slices", "tuned"])
def test_a_part_that_is_missing_leaves_the_rest(part: str) -> None:
    report = copy.deepcopy(_full())
    del report[part]
    assert "0.9385" in _parse(render_html(report)).text


def test_a_report_without_figures_is_still_a_page() -> None:
    page = render_html(_report(_histories(test=False)))
    assert "no figures on test" in _parse(page).text


# ---- twins --------------------------------------------------------------------------------------


def test_the_page_of_twins_is_well_formed_and_shows_every_task() -> None:
    page = render_twins(judged("rating"))
    checker = _parse(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "http" not in page
    for part in ("click", "rating", "RMSE", "1.021", "0.9712", "+5.1 %", "harm", "2 %", "aloud"):
        assert part in checker.text


def test_right_of_zero_joint_training_helps_whatever_the_metric() -> None:
    page = render_twins(judged())
    # RMSE grew by 5.1 %, NDCG by 10 %.
    assert "<title>rating: -5.1 % [-7.0 %, -3.0 %]</title>" in page
    assert "<title>click: +10 % [-2.0 %, +20 %]</title>" in page


def test_a_comparison_without_figures_is_still_a_page() -> None:
    tree = {**judged(), "tasks": {}}
    assert "aloud" in _parse(render_twins(tree)).text
