import numpy as np
import pytest

from mtrec.labels import label_values, parse_label, template_fields


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("rating", ("rating", None, 0.0)),
        ("rating >= 4", ("rating", ">=", 4.0)),
        (" rating<-1.5e2 ", ("rating", "<", -150.0)),
        ("dwell_s != 0", ("dwell_s", "!=", 0.0)),
    ],
)
def test_a_label_is_a_column_or_a_comparison(
    text: str, parsed: tuple[str, str | None, float]
) -> None:
    label = parse_label(text)

    assert (label.column, label.operator, label.value) == parsed


@pytest.mark.parametrize(
    "text", ["", "4 >= rating", "rating >=", "rating = 4", "rating >= 4 and x", "Rating > 1"]
)
def test_anything_else_is_no_label(text: str) -> None:
    with pytest.raises(ValueError, match="expected a column or a comparison"):
        parse_label(text)


def test_template_fields_are_listed_in_order() -> None:
    assert template_fields("{title} ({year}) | {genres}") == ["title", "year", "genres"]


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("rating", [3.0, 4.0, np.nan]),
        ("rating >= 4", [0.0, 1.0, np.nan]),
        ("rating < 4", [1.0, 0.0, np.nan]),
        ("rating != 3", [0.0, 1.0, np.nan]),
    ],
)
def test_labels_follow_their_expression_and_missing_stays_missing(
    label: str, values: list[float]
) -> None:
    found = label_values(label, {"rating": np.array([3.0, 4.0, np.nan])})
    np.testing.assert_array_equal(found, np.array(values, np.float32))
