import itertools

import numpy as np
import pytest
import torch

from mtrec.data.histories import Histories, history_batch, last_windows
from mtrec.model.history import SetEncoder
from mtrec.model.ranking import Context


def _context(num_rows: int) -> Context:
    return Context(torch.zeros(num_rows, 0), torch.zeros(num_rows, 0), {})


def test_a_batch_of_users_equals_a_loop_of_single_users(parts) -> None:
    model, data, batch, users, vectors = parts
    together = model.encode_users(batch, users, vectors)
    for row in range(3):
        history = data.train.rows([row])
        starts, stops = last_windows(history, 6)
        arrays = history_batch(history, starts, stops, scaling=data.scaling)
        alone = model.encode_users(
            {name: torch.from_numpy(values) for name, values in arrays.items()},
            users.rows(torch.tensor([row])),
            vectors,
        )
        assert torch.allclose(alone.vector[0], together.vector[row], atol=1e-6)
        assert torch.allclose(alone.residual[0], together.residual[row], atol=1e-6)


def test_users_are_what_their_histories_are_at_their_ends(parts) -> None:
    model, _, batch, users, vectors = parts
    hidden = torch.zeros_like(batch["item"], dtype=torch.bool)
    hidden[:, 1] = True
    for given in (batch, {**batch, "held_out": hidden}):
        row = torch.arange(len(batch["length"]))
        expected = model.encode_history(given, users, vectors, row, batch["length"])
        found = model.encode_users(given, users, vectors)
        for part in ("vector", "residual", "taste"):
            assert torch.allclose(getattr(found, part), getattr(expected, part), atol=1e-6)


def test_the_vector_for_an_event_does_not_know_it(parts, all_states) -> None:
    model, _, batch, users, vectors = parts
    changed = {name: values.clone() for name, values in batch.items()}
    for row, items in enumerate(batch["item"].tolist()):
        changed["item"][row, 3] = next(item for item in range(2, 22) if item not in items)
    changed["numbers"][:, 3] = 5.0
    before = all_states(model, batch, users, vectors)
    after = all_states(model, changed, users, vectors)
    assert torch.allclose(before.vector[:, 3], after.vector[:, 3], atol=1e-6)
    assert not torch.allclose(before.vector[:, 4], after.vector[:, 4])


def test_no_event_helps_to_predict_its_own_label(parts, all_states) -> None:
    model, _, batch, users, vectors = parts
    changed = {name: values.clone() for name, values in batch.items()}
    changed["item"][:, 3] = 21
    changed["numbers"][:, 3] = 5.0
    before = all_states(model, batch, users, vectors)
    after = all_states(model, changed, users, vectors)
    for part in ("residual", "taste"):
        one, two = getattr(before, part), getattr(after, part)
        assert torch.allclose(one[:, 3], two[:, 3], atol=1e-6), part
        assert not torch.allclose(one[:, 2], two[:, 2], atol=1e-3), part


def test_only_a_sequence_knows_the_order_of_events(parts) -> None:
    model, data, _, users, vectors = parts
    order = np.arange(data.train.num_events)
    for start, stop in itertools.pairwise(data.train.offsets):
        order[start:stop] = order[start:stop][::-1]
    backward = Histories(
        data.train.user_ids,
        data.train.offsets,
        data.train.item_index[order],
        data.train.timestamp,  # the gaps stay where they were
        data.train.split[order],
        {name: values[order] for name, values in data.train.numbers.items()},
        {},
        {},
    )
    states = []
    for histories in (data.train, backward):
        # The windows are whole: the longest history has 7 events.
        starts, stops = histories.offsets[:-1], histories.offsets[1:]
        keep = np.flatnonzero(stops - starts <= 6)
        arrays = history_batch(histories, starts[keep], stops[keep], scaling=data.scaling)
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        states.append(model.encode_users(batch, users.rows(torch.from_numpy(keep)), vectors))
    one, two = states
    assert torch.allclose(one.residual, two.residual, atol=1e-6)
    assert torch.allclose(one.taste, two.taste, atol=1e-6)
    is_set = isinstance(model.history, SetEncoder)
    assert torch.allclose(one.vector, two.vector, atol=1e-5) == is_set


def test_a_hidden_event_is_in_no_vector(parts, all_states) -> None:
    model, _, batch, users, vectors = parts
    if not isinstance(model.history, SetEncoder):
        pytest.skip("a sequence hides nothing: it is causal")
    hidden = torch.zeros_like(batch["item"], dtype=torch.bool)
    hidden[:, 2] = True
    changed = {name: values.clone() for name, values in batch.items()}
    changed["item"][:, 2] = 21
    changed["numbers"][:, 2] = 5.0
    before = all_states(model, {**batch, "held_out": hidden}, users, vectors).vector
    after = all_states(model, {**changed, "held_out": hidden}, users, vectors).vector
    shown = all_states(model, batch, users, vectors).vector
    assert torch.allclose(before, after, atol=1e-6)
    assert not torch.allclose(before[:, -1], shown[:, -1], atol=1e-3)


def test_a_user_without_any_event_has_a_state(parts) -> None:
    model, data, _, users, vectors = parts
    empty = data.train.select(np.zeros(data.train.num_events, bool))
    starts, stops = last_windows(empty, 6)
    arrays = history_batch(empty, starts, stops, scaling=data.scaling)
    batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
    states = model.encode_users(batch, users, vectors)
    assert torch.isfinite(states.vector).all()
    assert not states.residual.any()
    assert not states.taste.any()
