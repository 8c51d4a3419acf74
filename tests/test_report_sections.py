"""Sections that draw: what they say and when they say nothing."""

import pytest
from page_checker import parse_page
from test_report_page import full_report
from test_report_text import samples

from mtrec.report_sections import dial, explanations, learning, probabilities, slices
from mtrec.report_view import ReportView


def test_each_bar_of_a_slice_says_whose_it_is() -> None:
    section = slices(ReportView(full_report()))
    assert "<title>popularity, 1-4: 0.0000</title>" in section
    assert "<title>: " not in section
    assert "events in the user&#x27;s history" in section


def test_learning_tells_the_epoch_that_ships_and_draws_each_loss_with_its_figure() -> None:
    section = learning(ReportView(full_report()))
    text = parse_page(section).text
    for part in ("2 epochs", "epoch 2, the one that ships", "took 3 s", "Validation NDCG@3"):
        assert part in text


def test_the_removal_test_and_the_dial_are_drawn_with_their_numbers() -> None:
    view = ReportView({**full_report(), **samples()})
    removal, cost = explanations(view), dial(view)
    for section in (removal, cost):
        assert parse_page(section).open == []
    for part in ("88 %", "7 of 8", "0 of 0", "10 users, 2 of whom"):
        assert part in parse_page(removal).text
    for part in ("6 of 60 users", "0.4321", "0.6789", "NDCG@3", "Diversity@3"):
        assert part in parse_page(cost).text
    assert "<title>first reason: 88 % [53 %, 98 %]</title>" in removal
    assert "<title>control" not in removal
    assert "<title>0.5: Diversity@3 0.679, NDCG@3 0.321</title>" in cost


def test_a_dial_without_diversity_is_not_drawn() -> None:
    report = {**full_report(), **samples()}
    for point in report["dial"]["points"]:
        del point["diversity@3"]
    assert dial(ReportView(report)) == ""


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        (learning, ["curves"]),
        (probabilities, ["calibration", "predicted_by_truth"]),
        (slices, ["slices"]),
        (explanations, []),
        (dial, []),
    ],
)
def test_a_section_without_its_part_is_empty(section, parts) -> None:
    report = full_report()
    for part in parts:
        del report[part]
    assert section(ReportView(report)) == ""
