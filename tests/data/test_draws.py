"""Draws of splits against pandas and NumPy."""

import numpy as np
import pandas as pd
import pytest

from mtrec.data.draws import draw_folds, draw_split, draw_split_by_item, draw_split_of_items


@pytest.mark.parametrize("cuts", [(0.8, 0.9), (0.72, 0.8)])
def test_a_random_split_cuts_the_generators_numbers_in_row_order(cuts: tuple[float, float]) -> None:
    draw = pd.Series(np.random.default_rng(7).random(500))
    expected = pd.cut(draw, [0, *cuts, 1], right=False, labels=["train", "validation", "test"])

    assert draw_split(500, seed=7, cuts=cuts).tolist() == expected.tolist()


def test_a_split_by_item_draws_test_as_pandas_samples_each_item() -> None:
    item = np.random.default_rng(0).integers(1, 12, 300)
    frame = pd.DataFrame({"item": item})
    test = [
        index
        for _, group in frame.groupby("item")
        for index in group.sample(n=round(0.25 * len(group)), random_state=42).index
    ]
    expected = np.where(np.random.default_rng(5).random(300) < 0.1, "validation", "train")
    expected[test] = "test"

    assert draw_split_by_item(item, seed=5).tolist() == expected.tolist()


def test_a_split_by_item_has_the_same_test_part_for_every_seed() -> None:
    item = np.arange(200) % 9
    one, other = (draw_split_by_item(item, seed=seed) for seed in (0, 1))

    np.testing.assert_array_equal(one == "test", other == "test")
    assert (one != other).any()


def test_all_rows_of_an_item_get_the_split_that_the_item_drew() -> None:
    item = np.random.default_rng(0).integers(100, 400, 5000)
    split = draw_split_of_items(item, seed=4)

    # 15 % of the draws are test, 10 % validation.
    names = ["train", "validation", "test"]
    draw = pd.Series(np.random.default_rng(4).random(300), index=sorted(set(item)))
    expected = pd.cut(draw, [0, 0.75, 0.85, 1], right=False, labels=names)
    assert split.tolist() == expected[item].tolist()
    cold = {one for one, name in zip(item, split, strict=True) if name == "test"}
    # .15 of 300 items; three standard errors are .06.
    assert len(cold) / 300 == pytest.approx(0.15, abs=0.06)


def test_folds_of_users_are_equal_shares_that_the_seed_decides() -> None:
    folds = draw_folds(943, seed=2, folds=10)

    assert sorted(np.bincount(folds)) == [94] * 7 + [95] * 3
    assert (folds == np.random.default_rng(2).permutation(943) % 10).all()
    assert (folds != draw_folds(943, seed=3, folds=10)).any()
