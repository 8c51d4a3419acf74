import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.dataconfig import CategoriesColumn, CategoryColumn, NumberColumn
from mtrec.errors import RequestError
from mtrec.modelconfig import BinaryTask, RegressionTask
from mtrec.rerank import ItemFilter, blend, diversify, prediction_unit, retrieval_unit

RATING = RegressionTask(name="rating", kind="regression", label="rating", min=1, max=5)
LIKE = BinaryTask(name="like", kind="binary", label="rating >= 4")


@pytest.fixture
def items() -> ItemFilter:
    table = pa.table(
        {
            "price": pa.array([10.0, 20.0, None, 40.0]),
            "brand": pa.array(["a", "b", "a", None]),
            "genres": pa.array([["x", "y"], [], ["y"], None], pa.list_(pa.string())),
        }
    )
    columns = {
        "price": NumberColumn(kind="number"),
        "brand": CategoryColumn(kind="category"),
        "genres": CategoriesColumn(kind="categories"),
    }
    return ItemFilter(table, columns)


def test_retrieval_number_is_the_ratio_to_the_best() -> None:
    found = retrieval_unit(np.array([2.0, 1.0, 3.0]), np.array(2.0))
    assert found.tolist() == [1.0, pytest.approx(math.exp(-1.0)), 1.0]


def test_rating_is_mapped_from_its_declared_range() -> None:
    assert prediction_unit(RATING, np.array([1.0, 2.0, 5.0])).tolist() == [0.0, 0.25, 1.0]


def test_probability_is_kept() -> None:
    assert prediction_unit(LIKE, np.array([0.0, 0.3])).tolist() == [0.0, 0.3]


def test_blend_is_the_weighted_mean() -> None:
    units = {"click": np.array([1.0, 0.5]), "like": np.array([0.0, 0.9]), "rating": np.array([9.0])}
    found = blend(units, {"click": 1.0, "like": 3.0, "rating": 0.0})
    assert found.tolist() == pytest.approx([0.25, 0.8])


def test_blend_survives_huge_weights() -> None:
    units = {"click": np.array([1.0]), "like": np.array([0.0])}
    assert blend(units, {"click": 1.7e308, "like": 1.7e308}).tolist() == [0.5]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [2, 3, 4, 5]),
        ({"price": 20}, [3]),
        ({"price": [10, 40.0]}, [2, 5]),
        ({"price": {"min": 20}}, [3, 5]),
        ({"price": {"max": 20}}, [2, 3]),
        ({"price": {"min": 11, "max": 39}}, [3]),
        ({"brand": "a"}, [2, 4]),
        ({"brand": ["a", "b", "unheard of"]}, [2, 3, 4]),
        ({"genres": "y"}, [2, 4]),
        ({"genres": ["x", "z"]}, [2]),
        ({"genres": "y", "price": {"min": 0}}, [2]),
        ({"brand": []}, []),
    ],
)
def test_filter_allows_what_meets_every_condition(
    items: ItemFilter, conditions: dict[str, object], expected: list[int]
) -> None:
    allowed = items.allowed(conditions)
    if not conditions:
        assert allowed.all()
    else:
        assert np.flatnonzero(allowed).tolist() == expected


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        ([], "filter"),
        ({"colour": "red"}, "filter.colour"),
        ({"price": "dear"}, "filter.price"),
        ({"price": True}, "filter.price"),
        ({"price": math.nan}, "filter.price"),
        ({"price": 10**400}, "filter.price"),
        ({"price": {}}, "filter.price"),
        ({"price": {"from": 1}}, "filter.price"),
        ({"price": {"min": None}}, "filter.price.min"),
        ({"brand": {"min": 1}}, "filter.brand"),
        ({"brand": 1.5}, "filter.brand"),
        ({"brand": 10**5000}, "filter.brand"),
        ({"genres": [["x"]]}, "filter.genres"),
    ],
)
def test_wrong_filter_is_refused_with_its_field(
    items: ItemFilter, conditions: object, field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        items.allowed(conditions)
    assert caught.value.field == field
    assert caught.value.status == 422


def test_no_diversity_keeps_the_order_of_scores() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert diversify(np.array([0.9, 0.8, 0.7, 0.1]), vectors, 3, diversity=0.0).tolist() == [
        0,
        1,
        2,
    ]


def test_diversity_prefers_what_differs_from_the_chosen() -> None:
    # After 0: its twin 1 is worth .5 log(.9 / .5) / log(1 / .5) - .5 = -.08, the other direction 0.
    vectors = np.array([[1, 0], [2, 0], [0, 3]], np.float32)
    assert diversify(np.array([1.0, 0.9, 0.5]), vectors, 3, diversity=0.5).tolist() == [0, 2, 1]


def test_the_dial_works_alike_however_peaked_scores_are() -> None:
    logits = -(np.linspace(0.0, 3.0, 9) ** 2)
    vectors = np.random.default_rng(3).normal(size=(9, 2)).astype(np.float32)

    def lists(scale: float) -> list[list[int]]:
        scores = np.exp(scale * logits)
        return [diversify(scores, vectors, 4, diversity=dial).tolist() for dial in (0.0, 0.2, 0.9)]

    assert lists(0.1) == lists(1.0) == lists(40.0)
    nothing, little, much = lists(1.0)
    assert nothing == [0, 1, 2, 3]
    assert nothing != little != much


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ([1.0, 0.1, 0.0, 0.0], [0, 1, 2, 3]),  # where log is not defined: like the least
        ([0.0, 0.0, 0.0, 0.0], [0, 1, 2, 3]),
        ([0.5, 0.5, 0.5, 0.0], [0, 1, 2, 3]),
    ],
)
def test_scores_of_0_and_equal_ones_can_be_diversified(
    score: list[float], expected: list[int]
) -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert diversify(np.array(score), vectors, 4, diversity=0.5).tolist() == expected


@given(seed=st.integers(0, 1000), diversity=st.floats(0, 1), k=st.integers(1, 12))
def test_diversity_equals_the_formula_written_out(seed: int, diversity: float, k: int) -> None:
    rng = np.random.default_rng(seed)
    score = np.sort(rng.random(8))[::-1]
    vectors = rng.normal(size=(8, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = diversify(score, vectors, k, diversity=diversity).tolist()
    assert sorted(set(found)) == sorted(found) and len(found) == min(k, 8)
    for step, taken in enumerate(found):
        values = {
            i: (1 - diversity) * math.log(score[i] / score[-1]) / math.log(score[0] / score[-1])
            - diversity * max((unit[i] @ unit[j] for j in found[:step]), default=0.0)
            for i in set(range(8)) - set(found[:step])
        }
        assert values[taken] == pytest.approx(max(values.values()), abs=1e-5)
