from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrec.data.histories import history_batch, last_windows
from mtrec.model.ranking import Context
from mtrec.model.validation import monitored, open_logits, validate


def test_validation_equals_a_loop_over_users(any_config, fitted) -> None:
    config = any_config
    model, data, held_out = fitted
    found = validate(model, config, data, held_out)
    gains, errors = [], []
    with torch.no_grad():
        vectors = model.encode_items(data.items, data.trained)
        for user in range(len(held_out)):
            history = data.train.rows([user])
            starts, stops = last_windows(history, 6)
            arrays = history_batch(history, starts, stops, scaling=data.scaling)
            batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
            state = model.encode_users(batch, data.users.rows(torch.tensor([user])), vectors)
            logits = (vectors.fused @ state.vector[0] + vectors.bias).numpy()
            logits[[0, 1, *history.item_index]] = -np.inf
            target = held_out.rows([user]).item_index[0]
            place = (logits > logits[target]).sum() + 1
            gains.append(1 / np.log2(place + 1) if place <= 10 else 0.0)
            context = Context(torch.zeros(1, 0), torch.zeros(1, 0), {})
            stars = model.predict(
                model.rank(
                    state,
                    torch.tensor([int(target)]),
                    vectors,
                    context,
                )
            )["stars"].item()
            errors.append(stars - held_out.rows([user]).labels["stars"][0])
    assert found["item/ndcg@10"] == pytest.approx(np.mean(gains), rel=1e-6)
    assert found["stars/rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)


def test_what_a_user_met_before_is_not_wanted(any_config, fitted) -> None:
    """It is in no list, and the report does not ask for it either (`relevant_items`)."""
    model, data, held_out = fitted
    before = validate(model, any_config, data, held_out)["item/ndcg@10"]
    again = [data.train.rows([user]).item_index[0] for user in range(len(held_out))]
    place = np.repeat(np.arange(len(held_out)), 2)
    item = np.stack([held_out.item_index, again], axis=1).ravel()
    twice = replace(held_out.rows(place), item_index=item.astype(np.int32))
    twice = replace(twice, user_ids=held_out.user_ids, offsets=2 * np.arange(len(held_out) + 1))
    assert validate(model, any_config, data, twice)["item/ndcg@10"] == before


def test_cold_candidates_are_ranked_among_themselves(any_config, fitted) -> None:
    model, data, held_out = fitted
    unmet = np.array([4, 5, 6, 7, 8, 9])
    known = data.train.select(~np.isin(data.train.item_index, unmet))
    trained = data.trained.clone()
    trained[unmet] = 0.0
    data = replace(data, train=known, trained=trained)
    # Every second user's held-out item is one that others have met.
    assert np.isin(held_out.item_index, unmet).any()
    evaluate = any_config.evaluate.model_copy(update={"candidates": "cold", "k": 2})
    config = any_config.model_copy(update={"evaluate": evaluate})

    found = validate(model, config, data, held_out)

    gains = []
    with torch.no_grad():
        vectors = model.encode_items(data.items, trained)
        for user, target in enumerate(held_out.item_index):
            history = known.rows([user])
            starts, stops = last_windows(history, 6)
            arrays = history_batch(history, starts, stops, scaling=data.scaling)
            batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
            state = model.encode_users(batch, data.users.rows(torch.tensor([user])), vectors)
            logits = (vectors.fused @ state.vector[0] + vectors.bias).numpy()
            unseen = [item for item in range(2, 22) if item not in known.item_index]
            if target in unseen:
                place = 1 + sum(logits[item] > logits[target] for item in unseen)
                gains.append(1 / np.log2(place + 1) if place <= 2 else 0.0)
    assert 0 < len(gains) < len(held_out)
    assert found["item/ndcg@2"] == pytest.approx(np.mean(gains), rel=1e-6)


def test_what_may_not_be_listed_has_no_logit(any_config, fitted) -> None:
    model, data, held_out = fitted
    rows = np.arange(len(held_out))
    with torch.no_grad():
        vectors = model.encode_items(data.items, data.trained)
        _, logits = open_logits(model, any_config, data, data.train, rows, vectors)
    closed = np.zeros(logits.shape, bool)
    closed[:, :2] = True  # padding, and items outside the catalogue
    closed[data.train.event_user, data.train.item_index] = True
    np.testing.assert_array_equal(~torch.isfinite(logits).numpy(), closed)


def test_without_held_out_events_there_are_no_figures(any_config, fitted) -> None:
    model, data, held_out = fitted
    nothing = held_out.select(np.zeros(held_out.num_events, bool))
    assert validate(model, any_config, data, nothing) == {}


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [
        (None, ("item/ndcg@10", True)),
        ("stars/rmse", ("stars/rmse", False)),
        ("like/auc", ("like/auc", True)),
    ],
)
def test_the_monitored_value_and_its_direction(config, monitor, expected) -> None:
    changed = config.model_copy(
        update={"train": config.train.model_copy(update={"monitor": monitor})}
    )
    assert monitored(changed) == expected
