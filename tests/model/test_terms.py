import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrec.data.histories import history_batch, last_windows
from mtrec.factors import fit_factors, fit_join
from mtrec.ials import fit_ials
from mtrec.itemitem import NextItemSums, fit_ease
from mtrec.model.fit import start_state
from mtrec.model.ranking import Context
from mtrec.model.terms import (
    choose_ials,
    choose_items,
    choose_recency,
    join_factors,
)
from mtrec.modelconfig import (
    FactorsTerm,
    IalsSettings,
    IalsTerm,
    ItemItemTerm,
    NextItemTerm,
    RecencyTerm,
)


def _ndcg_beside(model, data, held_out) -> Callable[[np.ndarray], float]:
    """Give a function from what is added to the logits to NDCG@10 of one held-out item a user."""
    rows = np.arange(len(held_out))
    arrays = history_batch(data.train, *last_windows(data.train, 6), scaling=data.scaling)
    with torch.no_grad():
        vectors = model.encode_items(data.items, data.trained)
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        states = model.encode_users(batch, data.users.rows(torch.from_numpy(rows)), vectors)
        logits = (states.vector @ vectors.fused.T + vectors.bias).numpy()
    logits[:, :2] = -np.inf
    logits[data.train.event_user, data.train.item_index] = -np.inf

    def ndcg(added: np.ndarray) -> float:
        total = logits + added
        place = (total > total[rows, held_out.item_index][:, None]).sum(1) + 1
        # What a user met before is not asked for.
        is_new = np.isfinite(logits[rows, held_out.item_index])
        return float(np.mean(np.where(place <= 10, 1 / np.log2(place + 1), 0)[is_new]))

    return ndcg


def _decayed(data, half_life: float) -> np.ndarray:
    """Give log(1 + events), each worth 2^(-age / half-life), ages as shares of the span."""
    time, counts = data.train.timestamp, np.zeros(data.sizes.num_items)
    for at, item in enumerate(data.train.item_index):
        age = (time.max() - time[at]) / (time.max() - time.min())
        counts[item] += 0.5 ** (age / half_life)
    return np.log(1 + counts)


def test_recent_popularity_is_the_best_of_those_tried(any_config, fitted) -> None:
    model, data, held_out = fitted
    term = RecencyTerm(half_lives=[0.1, 0.5], scales=[0.3, 3.0])
    config = any_config.model_copy(
        update={"model": any_config.model.model_copy(update={"recency": term})}
    )
    # What comes last is what all users want next.
    late = np.where(data.train.item_index < 8, 1e6, 0.0) + data.train.timestamp
    data = replace(data, train=replace(data.train, timestamp=late))
    held_out = replace(held_out, item_index=np.full_like(held_out.item_index, 5))
    chosen = choose_recency(model, config, data, held_out)
    ndcg = _ndcg_beside(model, data, held_out)
    values = {
        (share, scale): ndcg(scale * _decayed(data, share))
        for share in term.half_lives
        for scale in (0.0, *term.scales)
    }
    assert chosen["ndcg"] == pytest.approx(max(values.values()), rel=1e-6)
    assert chosen["ndcg_without"] == pytest.approx(values[0.1, 0.0], rel=1e-6)
    assert values[chosen["half_life"], chosen["scale"]] == pytest.approx(chosen["ndcg"], rel=1e-6)
    assert chosen["scale"] > 0.0


def test_the_item_item_term_is_the_best_of_those_tried(any_config, fitted) -> None:
    model, data, held_out = fitted
    term = ItemItemTerm(top=6, reg=[1.0, 10.0], scales=[1.0, 5.0])
    found, chosen = choose_items(model, any_config, term, data, held_out)
    size, values = data.sizes.num_items, {}
    seen = data.train.latest(any_config.model.kept_events)
    ndcg = _ndcg_beside(model, data, held_out)
    for reg in term.reg:
        added = fit_ease(data.train, size, reg=reg, top=6).scores(seen).toarray()
        for scale in (0.0, *term.scales):
            values[reg, scale] = ndcg(scale * added)
    assert chosen["ndcg"] == pytest.approx(max(values.values()), rel=1e-6)
    assert chosen["ndcg_without"] == pytest.approx(values[1.0, 0.0], rel=1e-6)
    assert values[chosen["reg"], chosen["scale"]] == pytest.approx(chosen["ndcg"], rel=1e-6)
    # Users keep to their half of the items, which pairs of items tell better than three epochs.
    assert found is not None
    assert chosen["ndcg"] > chosen["ndcg_without"]


def test_the_next_item_term_is_the_best_of_those_tried(any_config, fitted) -> None:
    model, data, held_out = fitted
    term = NextItemTerm(top=6, half_lives=[1.0, 3.0], reg=[1.0, 10.0], scales=[1.0, 5.0])
    found, chosen = choose_items(model, any_config, term, data, held_out)
    values = {}
    seen = data.train.latest(any_config.model.kept_events)
    ndcg = _ndcg_beside(model, data, held_out)
    for half_life, reg in itertools.product(term.half_lives, term.reg):
        sums = NextItemSums.of(data.train, data.sizes.num_items, half_life)
        added = sums.fit(reg, 6).scores(seen).toarray()
        for scale in (0.0, *term.scales):
            values[half_life, reg, scale] = ndcg(scale * added)
    assert chosen["ndcg"] == pytest.approx(max(values.values()), rel=1e-6)
    assert chosen["ndcg_without"] == pytest.approx(values[1.0, 1.0, 0.0], rel=1e-6)
    best = chosen["half_life"], chosen["reg"], chosen["scale"]
    assert values[best] == pytest.approx(chosen["ndcg"], rel=1e-6)
    # Users keep to their half of the items, which what came before tells.
    assert found is not None
    assert found.half_life == chosen["half_life"]
    assert chosen["ndcg"] > chosen["ndcg_without"]


def test_ials_is_the_best_of_those_tried_beside_an_item_item_term(any_config, fitted) -> None:
    model, data, held_out = fitted
    size = data.sizes.num_items
    tried = [IalsSettings(factors=2, alpha=5.0, reg=1.0), IalsSettings(factors=3, reg=2.0)]
    term = IalsTerm(tried=tried, scales=[0.5, 5.0])
    config = any_config.model_copy(
        update={"model": any_config.model.model_copy(update={"ials": term})}
    )
    ease = fit_ease(data.train, size, reg=5.0, top=6).scaled(0.3)
    found, beside, chosen = choose_ials(model, config, data, held_out, ease)
    seen = data.train.latest(config.model.kept_events)
    of_ease = ease.scores(seen).toarray()
    ndcg = _ndcg_beside(model, data, held_out)
    first = {(0, 0.0): ndcg(of_ease)}
    scores = [
        fit_ials(data.train, size, seed=config.run.seed, **one.model_dump()).scores(seen)
        for one in tried
    ]
    first |= {(at, s): ndcg(of_ease + s * scores[at]) for at in (0, 1) for s in (0.5, 5.0)}
    at, scale = max(first, key=first.__getitem__)
    assert chosen["ndcg_without"] == pytest.approx(first[0, 0.0], rel=1e-6)
    assert found is not None, "users keep to their half of the items, which iALS finds"
    assert chosen["scale"] == scale
    assert found.alpha == tried[at].alpha
    again = {
        factor: ndcg(factor * of_ease + scale * scores[at]) for factor in (1, 0.25, 0.5, 0.75, 1.5)
    }
    assert chosen["ndcg"] == pytest.approx(max(again.values()), rel=1e-6)
    assert again[chosen["item_item"]] == pytest.approx(chosen["ndcg"], rel=1e-6)
    np.testing.assert_allclose(
        beside.scores(seen).toarray(), chosen["item_item"] * of_ease, rtol=1e-5
    )
    np.testing.assert_allclose(found.scores(seen), scale * scores[at], rtol=1e-3, atol=1e-5)


def test_texts_tell_ials_of_items_that_nobody_met_where_validation_says_so(
    any_config, fitted
) -> None:
    model, data, _ = fitted
    is_cold = data.train.item_index >= 16
    held_out = data.train.select(is_cold)
    data = replace(data, train=data.train.select(~is_cold))
    term = IalsTerm(
        tried=[IalsSettings(factors=2, alpha=5.0, reg=1.0)], scales=[50.0], ridges=[1.0]
    )
    config = any_config.model_copy(
        update={
            "model": any_config.model.model_copy(update={"ials": term}),
            "evaluate": any_config.evaluate.model_copy(update={"candidates": "cold", "k": 2}),
        }
    )
    found, _, chosen = choose_ials(model, config, data, held_out, None)
    assert (chosen["ridge"], chosen["scale"]) == (1.0, 50.0)
    assert found is not None and found.told is not None
    assert np.flatnonzero(found.told).tolist() == [16, 17, 18, 19, 20, 21]
    # Users keep to the even or the odd items, which the texts tell.
    scores = found.scores(data.train)[:, 16:]
    own = np.arange(len(scores)) % 2
    difference = scores[:, ::2].mean(1) - scores[:, 1::2].mean(1)
    assert (np.where(own == 0, difference, -difference) > 0).all()
    without = term.model_copy(update={"ridges": []})
    config = config.model_copy(update={"model": config.model.model_copy(update={"ials": without})})
    assert choose_ials(model, config, data, held_out, None)[2]["ndcg"] < chosen["ndcg"]


def test_factors_join_by_what_validation_says(any_config, make_data) -> None:
    data, held_out = make_data(60)
    # Every third user says one more of whatever it is, which the network was never told.
    train, held_out = (
        replace(
            part,
            numbers={"rating": part.numbers["rating"] + (part.event_user % 3 == 0)},
            labels={**part.labels, "stars": part.labels["stars"] + (part.event_user % 3 == 0)},
        )
        for part in (data.train, held_out)
    )
    data = replace(data, train=train)
    term = FactorsTerm(column="rating", rank=2, length=4)
    config = any_config.model_copy(
        update={"model": any_config.model.model_copy(update={"factors": term})}
    )
    model = start_state(config, data, torch.device("cpu")).model.eval()
    size = data.sizes.num_items
    factors = fit_factors(
        data.train, data.train.numbers["rating"], size,
        rank=2, draws=8, burn_in=20, thin=1, seed=0,
    )  # fmt: skip
    found, figures = join_factors(model, config, data, held_out, factors)
    said = []
    for user in range(len(held_out)):
        history = data.train.rows([user])
        history = history.select(np.arange(history.num_events) >= history.num_events - 4)
        vector = factors.users(history, history.numbers["rating"])
        target = held_out.rows([user]).item_index
        said.append(factors.predict(vector, np.array([0]), target)[0])
    network = _predictions(model, data, held_out)
    label = held_out.labels["stars"]
    expected = fit_join(config.task("stars"), network, np.array(said), label, factors.scale)
    assert expected is not None
    np.testing.assert_allclose(found.weights["stars"], expected, rtol=1e-3, atol=1e-4)
    rmse = float(np.sqrt(np.mean((network - label) ** 2)))
    assert figures["stars_without"] == pytest.approx(rmse, rel=1e-5)
    assert figures["stars_with"] < figures["stars_without"]


def _predictions(model, data, held_out) -> np.ndarray:
    """Predict each user's only held-out star label, user by user."""
    found = []
    with torch.no_grad():
        vectors = model.encode_items(data.items, data.trained)
        for user in range(len(held_out)):
            history = data.train.rows([user])
            arrays = history_batch(history, *last_windows(history, 6), scaling=data.scaling)
            batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
            state = model.encode_users(batch, data.users.rows(torch.tensor([user])), vectors)
            target = torch.from_numpy(held_out.rows([user]).item_index.astype(np.int64))
            context = Context(torch.zeros(1, 0), torch.zeros(1, 0), {})
            logits = model.rank(state, target, vectors, context)
            found.append(model.predict(logits)["stars"].item())
    return np.array(found, np.float32)
