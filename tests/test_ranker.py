from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from small_bundle import Small

from mtrec.bundle import Bundle, load_bundle
from mtrec.data.histories import Histories, history_batch
from mtrec.errors import RequestError
from mtrec.itemitem import ItemItem
from mtrec.model.rows import user_inputs
from mtrec.ranker import Crowd, Ranker, Wish
from mtrec.userstore import UserRows

CLICK = {"click": 1.0}


@pytest.fixture(scope="module")
def bundle(small: Small) -> Bundle:
    return load_bundle(small.path)


@pytest.fixture(scope="module")
def ranker(bundle: Bundle) -> Ranker:
    return Ranker(bundle, np.arange(14))


@pytest.fixture(scope="module")
def users(small: Small, bundle: Bundle) -> UserRows:
    return bundle.users.rows(bundle.users.find(small.histories.user_ids.tolist()))


@pytest.fixture(scope="module")
def crowd(small: Small, ranker: Ranker, users: UserRows) -> Crowd:
    return ranker.crowd(small.histories, users)


def logits(bundle: Bundle, crowd: Crowd) -> np.ndarray:
    vectors = bundle.vectors
    states = crowd.states.vector.numpy().astype(np.float64)
    return states @ (vectors.content + vectors.collaborative).T.astype(np.float64) + vectors.bias


def test_lists_equal_brute_force_over_the_catalogue(
    bundle: Bundle, ranker: Ranker, crowd: Crowd
) -> None:
    z = logits(bundle, crowd)
    z[:, :2] = -np.inf
    for row, gone in enumerate(crowd.exclude):
        z[row, gone] = -np.inf
    found = ranker.rank(crowd, Wish(2, CLICK))
    expected = np.argsort(-z, axis=1, kind="stable")[:, :2]
    best = np.take_along_axis(z, expected, axis=1)
    assert found.item_index.tolist() == expected.tolist()
    np.testing.assert_allclose(found.score, np.exp(best - best[:, :1]), rtol=1e-9)
    np.testing.assert_array_equal(found.score, found.retrieval)


def test_what_is_met_and_what_is_wished_for_add_up(
    small: Small, bundle: Bundle, users: UserRows
) -> None:
    rng = np.random.default_rng(2)
    weights = np.abs(rng.normal(size=(14, 14))).astype(np.float32)
    ranker = Ranker(replace(bundle, item_item=ItemItem(sparse.csr_array(weights))), np.arange(14))
    likeness = rng.uniform(-1.0, 1.0, size=(len(users), 14)).astype(np.float32)
    likeness[2] = 0.0  # who wishes for nothing
    plain = ranker.crowd(small.histories, users)
    crowd = ranker.crowd(small.histories, users, likeness=sparse.csr_array(likeness))
    assert plain.added is not None and crowd.added is not None
    z = plain.vectors @ bundle.vectors.search.T + bundle.vectors.bias + plain.added.toarray()
    wish = 10.0 * z[:, 2:].std(axis=1, keepdims=True) * likeness
    np.testing.assert_allclose(crowd.added.toarray(), plain.added.toarray() + wish, rtol=1e-4)
    some = crowd.rows([3, 1])
    assert some.text_logits is not None
    np.testing.assert_allclose(some.text_logits.toarray(), wish[[3, 1]], rtol=1e-4)


def test_state_is_what_the_model_makes_of_the_last_window(
    small: Small, bundle: Bundle, users: UserRows, crowd: Crowd, ranker: Ranker
) -> None:
    known = small.histories.select(small.histories.item_index >= 2)
    stop = known.offsets[6:7]  # the user with nine events, of which the model sees four
    batch = history_batch(known, stop - 4, stop, scaling=bundle.transform.event_scaling)
    inputs = user_inputs(users, np.array([5]), bundle.sizes, "cpu")
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    with torch.inference_mode():
        expected = bundle.model.encode_users(tensors, inputs, ranker._vectors)
    torch.testing.assert_close(crowd.states.vector[5:6], expected.vector, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(crowd.states.residual[5:6], expected.residual, rtol=1e-5, atol=1e-6)


def test_events_of_unknown_items_do_not_count(
    small: Small, bundle: Bundle, ranker: Ranker, users: UserRows
) -> None:
    history = small.histories
    assert (history.item_index == 1).any()
    clean = history.select(history.item_index != 1)
    first, second = (ranker.crowd(known, users) for known in (history, clean))
    torch.testing.assert_close(first.states.vector, second.states.vector)
    torch.testing.assert_close(first.states.residual, second.states.residual)


def test_padding_follows_where_a_user_runs_out_of_items(ranker: Ranker, crowd: Crowd) -> None:
    everything = np.arange(2, 14)
    full = Crowd(crowd.states, crowd.vectors, crowd.is_cold, [everything[1:]] * len(crowd.is_cold))
    found = ranker.rank(full, Wish(20, {"click": 1.0, "like": 1.0}))
    assert found.item_index[:, 0].tolist() == [2] * 7
    assert (found.item_index[:, 1:] == -1).all()
    for values in (found.score, found.retrieval, *found.tasks.values()):
        assert np.isfinite(values[:, 0]).all() and np.isnan(values[:, 1:]).all()


def test_users_do_not_change_each_other(
    small: Small, ranker: Ranker, users: UserRows, crowd: Crowd
) -> None:
    together = ranker.rank(crowd, Wish(3, CLICK))
    for row in range(len(small.histories)):
        alone = ranker.rank(crowd.rows([row]), Wish(3, CLICK))
        assert alone.item_index.tolist() == together.item_index[row : row + 1].tolist()
        np.testing.assert_allclose(alone.score[0], together.score[row], rtol=1e-6)


def test_order_of_users_only_permutes_the_lists(
    small: Small, bundle: Bundle, ranker: Ranker, crowd: Crowd
) -> None:
    order = [3, 0, 6, 5, 1, 2, 4]
    shuffled = small.histories.rows(order)
    rows = bundle.users.rows(bundle.users.find(shuffled.user_ids.tolist()))
    found = ranker.rank(ranker.crowd(shuffled, rows), Wish(3, CLICK))
    assert (
        found.item_index.tolist() == ranker.rank(crowd, Wish(3, CLICK)).item_index[order].tolist()
    )


def test_no_users_have_no_lists(small: Small, ranker: Ranker, users: UserRows) -> None:
    nobody = UserRows(
        type(users.features)(
            users.features.numbers[:0],
            {name: values[:0] for name, values in users.features.categories.items()},
            {},
        ),
        users.text[:0],
        users.has_text[:0],
        users.is_known[:0],
    )
    found = ranker.rank(ranker.crowd(small.histories.rows([]), nobody), Wish(3, CLICK))
    assert found.item_index.shape == found.score.shape == (0, 3)


def test_pairs_get_what_lists_say(ranker: Ranker, crowd: Crowd) -> None:
    lists = ranker.rank(crowd, Wish(2, CLICK))
    rows = np.repeat(np.arange(7), 2)
    pairs = ranker.predict_pairs(crowd, rows, lists.item_index.ravel())
    for task in ("stars", "like"):
        np.testing.assert_allclose(pairs[task], lists.tasks[task].ravel(), rtol=1e-5)
    assert (lists.tasks["stars"] >= 1).all() and (lists.tasks["stars"] <= 5).all()


def test_numbers_beyond_the_model_are_the_requests_fault(
    small: Small, ranker: Ranker, users: UserRows
) -> None:
    history = small.histories
    huge = Histories(
        history.user_ids,
        history.offsets,
        history.item_index,
        history.timestamp,
        history.split,
        {**history.numbers, "hour": np.full(history.num_events, 3e38, np.float32)},
        history.categories,
    )
    with pytest.raises(RequestError, match="too large for the model"):
        ranker.crowd(huge, users)
