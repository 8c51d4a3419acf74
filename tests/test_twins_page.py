"""The page of twins: well-formed, every task, right of zero where joint training helps."""

from page_checker import parse_page
from test_harm import judged

from mtrec.twins_page import render_twins


def test_the_page_of_twins_is_well_formed_and_shows_every_task() -> None:
    page = render_twins(judged("rating"))
    checker = parse_page(page)
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
    assert "aloud" in parse_page(render_twins(tree)).text
