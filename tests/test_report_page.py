"""The page: one well-formed file without network or script that shows what the report says."""

import copy
from typing import Any

import pytest
from page_checker import parse_page
from test_report import _histories, _report

from mtrec.report_page import render_html


def full_report() -> Any:
    """Give a small report with every part but the removal test and the dial."""
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
    page = render_html(full_report())
    checker = parse_page(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_page_shows_figures_curves_calibration_and_protocol() -> None:
    text = parse_page(render_html(full_report())).text
    for part in ("0.9385", "RMSE", "popularity", "Learning", "Calibration", "Protocol", "3 s"):
        assert part in text
    assert "said before" in text
    assert "-50 %" in text


def test_names_from_the_data_are_escaped() -> None:
    report = full_report()
    report["protocol"]["data"] = "<b>&"
    assert "<b>&<" not in render_html(report)
    assert "<b>&" in parse_page(render_html(report)).text


@pytest.mark.parametrize("part", ["curves", "calibration", "predicted_by_truth", "slices", "tuned"])
def test_a_part_that_is_missing_leaves_the_rest(part: str) -> None:
    report = copy.deepcopy(full_report())
    del report[part]
    assert "0.9385" in parse_page(render_html(report)).text


def test_a_report_without_figures_is_still_a_page() -> None:
    page = render_html(_report(_histories(test=False)))
    assert "no figures on test" in parse_page(page).text
