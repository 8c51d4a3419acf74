"""The page: one well-formed file without network or script that shows what the report says."""

import copy
from typing import Any

import pytest
from page_checker import parse_page
from test_report import _histories, _report, samples

from mtrec.report_page import render_html


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


def test_page_is_well_formed_and_needs_no_network_or_script() -> None:
    page = render_html(_full())
    checker = parse_page(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_page_shows_figures_curves_calibration_and_protocol() -> None:
    text = parse_page(render_html(_full())).text
    for part in ("0.9385", "RMSE", "popularity", "Learning", "Calibration", "Protocol", "3 s"):
        assert part in text
    assert "said before" in text
    assert "-50 %" in text


def test_each_bar_of_a_slice_says_whose_it_is() -> None:
    page = render_html(_full())
    assert "<title>popularity, 1-4: 0.0000</title>" in page
    assert "<title>: " not in page
    assert "events in the user&#x27;s history" in page


def test_page_shows_the_removal_test_and_the_dial_with_its_numbers() -> None:
    page = render_html({**_full(), **samples()})
    checker = parse_page(page)
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
    assert "<b>&" in parse_page(render_html(report)).text


@pytest.mark.parametrize("part", ["curves", "calibration", "predicted_by_truth", "slices", "tuned"])
def test_a_part_that_is_missing_leaves_the_rest(part: str) -> None:
    report = copy.deepcopy(_full())
    del report[part]
    assert "0.9385" in parse_page(render_html(report)).text


def test_a_report_without_figures_is_still_a_page() -> None:
    page = render_html(_report(_histories(test=False)))
    assert "no figures on test" in parse_page(page).text
