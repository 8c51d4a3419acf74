"""Words and numbers of pages, as people read them."""

import pytest
from page_checker import parse_page

from mtrec import pageparts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ndcg@10", "NDCG@10"),
        ("rmse", "RMSE"),
        ("coverage@5", "Coverage@5"),
        ("logloss", "Log loss"),
    ],
)
def test_metrics_have_the_names_of_the_field(name: str, shown: str) -> None:
    assert pageparts.metric_name(name) == shown


def test_methods_have_their_names_and_others_lose_the_underscore() -> None:
    assert pageparts.method_name("ials") == "iALS"
    assert pageparts.method_name("recent_popularity") == "recent popularity"


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.12345, "0.1235"), (-1.5, "-1.500"), (12.345, "12.3")]
)
def test_numbers_have_about_four_digits(value: float | None, shown: str) -> None:
    assert pageparts.four_digits(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0 %"), (0.0123, "+1.2 %"), (-0.0123, "-1.2 %"), (0.256, "+26 %")]
)
def test_changes_have_a_sign(value: float, shown: str) -> None:
    assert pageparts.signed_percent(value) == shown


def test_shares_are_whole_per_cent() -> None:
    assert pageparts.whole_percent(0.256) == "26 %"
    assert pageparts.three_digits(0.012345) == "0.0123"


def test_a_page_escapes_its_title_and_leaves_empty_sections_out() -> None:
    page = pageparts.whole_page("a <b> & c", ["<p>one</p>", "", "<p>two</p>"])
    assert "a &lt;b&gt; &amp; c" in page
    assert "<p>one</p>\n<p>two</p>" in page
    parse_page(page)


def test_cards_and_legends_escape_their_words() -> None:
    assert "&lt;x&gt;" in pageparts.card("<x>", "sub", "")
    assert pageparts.legend_of([("a", "<y>")]).count("&lt;y&gt;") == 1
