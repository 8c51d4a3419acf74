import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from mtrec.index import ExactIndex


def brute_force(
    users: NDArray[np.float32],
    vectors: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    k: int,
    exclude: list[list[int]],
    allowed: NDArray[np.bool_],
    added: NDArray[np.float32],
) -> list[list[tuple[int, float]]]:
    lists = []
    for user, gone, more in zip(users, exclude, added, strict=True):
        scored = [
            (
                -(float(user.astype(float) @ vector.astype(float)) + float(b + more[position])),
                position,
            )
            for position, (vector, b) in enumerate(zip(vectors, bias, strict=True))
            if position >= 2 and position not in gone and allowed[position]
        ]
        lists.append([(position, -negative) for negative, position in sorted(scored)[:k]])
    return lists


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(2, 40),
    num_users=st.integers(1, 9),
    k=st.integers(1, 50),
    block_bytes=st.sampled_from([1, 400, 1 << 20]),
    is_filtered=st.booleans(),
    has_added=st.booleans(),
)
def test_search_equals_brute_force_with_many_ties(
    *,
    seed: int,
    num_items: int,
    num_users: int,
    k: int,
    block_bytes: int,
    is_filtered: bool,
    has_added: bool,
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers: sums are exact in every arithmetic, and ties are everywhere.
    content, collaborative = rng.integers(-1, 2, (2, num_items, 3)).astype(np.float32)
    bias = rng.integers(-1, 2, num_items).astype(np.float32)
    users = rng.integers(-1, 2, (num_users, 3)).astype(np.float32)
    exclude = [rng.permutation(num_items)[: rng.integers(0, num_items)] for _ in range(num_users)]
    allowed = rng.random(num_items) < 0.5 if is_filtered else np.ones(num_items, bool)
    added = (rng.integers(-1, 2, (num_users, num_items)) * has_added).astype(np.float32)
    index = ExactIndex(content + collaborative, bias, block_bytes=block_bytes)
    found = index.search(
        users,
        k,
        exclude=exclude,
        allowed=allowed if is_filtered else None,
        added=sparse.csr_array(added) if has_added else None,
    )
    expected = brute_force(
        users,
        content + collaborative,
        bias,
        k=k,
        exclude=[list(row) for row in exclude],
        allowed=allowed,
        added=added,
    )
    for row, pairs in enumerate(expected):
        padding = k - len(pairs)
        assert found.item_index[row].tolist() == [p for p, _ in pairs] + [-1] * padding
        assert found.logit[row, : len(pairs)].tolist() == [z for _, z in pairs]
        assert np.isnan(found.logit[row, len(pairs) :]).all()


@pytest.mark.parametrize(("num_items", "num_users", "k"), [(50, 7, 5), (700, 33, 20)])
def test_search_equals_brute_force_on_real_numbers(num_items: int, num_users: int, k: int) -> None:
    rng = np.random.default_rng(3)
    content = rng.normal(size=(num_items, 8)).astype(np.float32)
    collaborative = np.zeros_like(content)
    bias = rng.normal(size=num_items).astype(np.float32)
    users = rng.normal(size=(num_users, 8)).astype(np.float32)
    index = ExactIndex(content + collaborative, bias, block_bytes=4 * num_items * 5)
    found = index.search(users, k)
    everything, nothing = np.ones(num_items, bool), np.zeros((num_users, num_items), np.float32)
    expected = brute_force(
        users, content, bias, k=k, exclude=[[]] * num_users, allowed=everything, added=nothing
    )
    assert found.item_index.tolist() == [[p for p, _ in row] for row in expected]
    np.testing.assert_allclose(found.logit, [[z for _, z in row] for row in expected], rtol=1e-12)


@pytest.mark.parametrize("by_numpy", [True, False])
def test_one_user_gets_the_same_whichever_library_multiplies(by_numpy: bool) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(700, 8)).astype(np.float32)
    bias = rng.normal(size=700).astype(np.float32)
    user = rng.normal(size=(1, 8)).astype(np.float32)
    index = ExactIndex(vectors, bias)
    index._by_numpy = by_numpy
    found = index.search(user, 20)
    logits = vectors[2:].astype(np.float64) @ user[0].astype(np.float64) + bias[2:]
    order = np.argsort(-logits)[:20]
    assert found.item_index[0].tolist() == (order + 2).tolist()
    np.testing.assert_allclose(found.logit[0], logits[order], rtol=1e-12)
    # The copy of the bias that masks the special rows is still what it was.
    assert index.search(user, 20).logit.tolist() == found.logit.tolist()


def test_user_with_everything_excluded_gets_an_empty_list() -> None:
    ones = np.ones((5, 2), np.float32)
    found = ExactIndex(2.0 * ones, np.zeros(5, np.float32)).search(
        np.ones((1, 2), np.float32), 3, exclude=[np.array([2, 3, 4])]
    )
    assert found.item_index.tolist() == [[-1, -1, -1]]
    assert np.isnan(found.max_logit).all()


def test_largest_logit_leaves_out_excluded_items_but_not_filtered_ones() -> None:
    content = np.array([[9], [9], [5], [3], [1]], np.float32)
    index = ExactIndex(content, np.zeros(5, np.float32))
    found = index.search(
        np.ones((1, 1), np.float32),
        2,
        exclude=[np.array([2])],
        allowed=np.array([True, True, True, False, True]),
    )
    assert found.item_index.tolist() == [[4, -1]]
    assert found.max_logit.tolist() == [3.0]


def test_logits_do_not_depend_on_the_block() -> None:
    rng = np.random.default_rng(0)
    content, collaborative = rng.normal(size=(2, 300, 16)).astype(np.float32)
    users = rng.normal(size=(40, 16)).astype(np.float32)
    bias = np.zeros(300, np.float32)
    whole = ExactIndex(content + collaborative, bias).search(users, 10)
    singly = ExactIndex(content + collaborative, bias, block_bytes=1).search(users, 10)
    assert np.array_equal(whole.item_index, singly.item_index)
    assert np.array_equal(whole.logit, singly.logit)


def test_index_says_that_it_is_exact() -> None:
    assert ExactIndex.is_exact


@pytest.mark.parametrize("num_users", [1, 3])
def test_spread_is_the_standard_deviation_over_the_catalogue(num_users: int) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(90, 6)).astype(np.float32)
    bias = rng.normal(size=90).astype(np.float32)
    users = rng.normal(size=(num_users, 6)).astype(np.float32)
    added = sparse.random_array((num_users, 90), density=0.1, rng=rng, dtype=np.float32).tocsr()
    index = ExactIndex(vectors, bias, block_bytes=2 * 4 * 90)
    z = users.astype(float) @ vectors.T + bias
    np.testing.assert_allclose(index.spreads(users), z[:, 2:].std(axis=1), rtol=1e-6)
    expected = (z + added.toarray())[:, 2:].std(axis=1)
    np.testing.assert_allclose(index.spreads(users, added), expected, rtol=1e-6)


def test_log_shares_are_a_softmax_over_what_is_not_excluded() -> None:
    rng = np.random.default_rng(3)
    content, users = (rng.normal(size=(n, 4)).astype(np.float32) for n in (12, 3))
    bias = rng.normal(size=12).astype(np.float32)
    index = ExactIndex(content, bias, block_bytes=1)
    shares = index.log_shares(users, np.array([3, 7]), exclude=np.array([2, 9]))
    for user, share in zip(users, shares, strict=True):
        weights = np.exp(content.astype(float) @ user.astype(float) + bias)
        weights[[0, 1, 2, 9]] = 0.0
        expected = np.log(weights[[3, 7]] / weights.sum())
        np.testing.assert_allclose(share, expected, atol=1e-5)


def test_a_share_of_almost_one_is_not_lost_in_rounding() -> None:
    """Two logits near 100, which float32 knows to 1e-5, leave the second item a share of 1e-6."""
    content = np.array([[0.0], [0.0], [301.7], [260.3]], np.float32)
    index = ExactIndex(content, np.zeros(4, np.float32))
    user = np.array([[1.0 / 3.0]], np.float32)
    gap = float(user[0, 0]) * float(content[2, 0] - content[3, 0])
    share = index.log_shares(user, np.array([2]))[0, 0]
    assert share == pytest.approx(-np.log1p(np.exp(-gap)), rel=1e-3)
