import itertools
import json

import numpy as np
import pytest
import torch

from mtrec.data.histories import Histories, history_batch, last_windows
from mtrec.model.history import SetEncoder
from mtrec.model.network import Context, ModelSizes, UserStates, build_model


def _context(num_rows: int) -> Context:
    return Context(torch.zeros(num_rows, 0), torch.zeros(num_rows, 0), {})


def _all_states(model, batch, users, vectors) -> UserStates:
    """Give the states at all places, (B, T + 1, ...); zeros beyond the windows' lengths."""
    width = batch["item"].shape[1] + 1
    row_S, place_S = torch.nonzero(torch.arange(width) <= batch["length"][:, None]).T
    states = model.encode_history(batch, users, vectors, row_S, place_S)

    def unpacked(values_SX):
        found = values_SX.new_zeros(len(batch["length"]), width, values_SX.shape[-1])
        return found.index_put((row_S, place_S), values_SX)

    return UserStates(*(unpacked(part) for part in (states.vector, states.residual, states.taste)))


@pytest.fixture
def parts(any_config, sizes, make_data):
    config = any_config
    torch.manual_seed(0)
    model = build_model(config.model, config.tasks, sizes).eval()
    data, _ = make_data()
    starts, stops = last_windows(data.train, config.model.history.length)
    arrays = history_batch(data.train, starts, stops, scaling=data.scaling)
    batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
    users = data.users.rows(torch.arange(len(data.train)))
    return model, data, batch, users, model.encode_items(data.items, data.trained)


def test_sizes_survive_json(sizes: ModelSizes) -> None:
    assert ModelSizes.from_json(json.loads(json.dumps(sizes.to_json()))) == sizes


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


def test_the_vector_for_an_event_does_not_know_it(parts) -> None:
    model, _, batch, users, vectors = parts
    changed = {name: values.clone() for name, values in batch.items()}
    for row, items in enumerate(batch["item"].tolist()):
        changed["item"][row, 3] = next(item for item in range(2, 22) if item not in items)
    changed["numbers"][:, 3] = 5.0
    before = _all_states(model, batch, users, vectors)
    after = _all_states(model, changed, users, vectors)
    assert torch.allclose(before.vector[:, 3], after.vector[:, 3], atol=1e-6)
    assert not torch.allclose(before.vector[:, 4], after.vector[:, 4])


def test_no_event_helps_to_predict_its_own_label(parts) -> None:
    model, _, batch, users, vectors = parts
    changed = {name: values.clone() for name, values in batch.items()}
    changed["item"][:, 3] = 21
    changed["numbers"][:, 3] = 5.0
    before = _all_states(model, batch, users, vectors)
    after = _all_states(model, changed, users, vectors)
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


def test_a_hidden_event_is_in_no_vector(parts) -> None:
    model, _, batch, users, vectors = parts
    if not isinstance(model.history, SetEncoder):
        pytest.skip("a sequence hides nothing: it is causal")
    hidden = torch.zeros_like(batch["item"], dtype=torch.bool)
    hidden[:, 2] = True
    changed = {name: values.clone() for name, values in batch.items()}
    changed["item"][:, 2] = 21
    changed["numbers"][:, 2] = 5.0
    before = _all_states(model, {**batch, "held_out": hidden}, users, vectors).vector
    after = _all_states(model, {**changed, "held_out": hidden}, users, vectors).vector
    shown = _all_states(model, batch, users, vectors).vector
    assert torch.allclose(before, after, atol=1e-6)
    assert not torch.allclose(before[:, -1], shown[:, -1], atol=1e-3)


def test_residuals_are_shrunk_means_of_the_other_events(parts) -> None:
    model, _, batch, users, vectors = parts
    with torch.no_grad():
        model.ranking.usual.weight[:, 0] = torch.arange(22) / 10
    residual = _all_states(model, batch, users, vectors).residual
    length = int(batch["length"][0])
    own = (batch["numbers"][0, :, 0] - batch["item"][0] / 10)[:length].numpy()
    others = own.sum() - own[2]
    assert residual[0, 2, 0].item() == pytest.approx(others / (length - 1 + 5.0), rel=1e-4)
    assert residual[0, length, 0].item() == pytest.approx(own.sum() / (length + 5.0), rel=1e-4)


def test_taste_is_the_asymmetric_sum_of_svdpp(parts) -> None:
    model, _, batch, users, vectors = parts
    with torch.no_grad():
        model.ranking.usual.weight[:, 0] = torch.arange(22) / 10
    taste = _all_states(model, batch, users, vectors).taste
    length = int(batch["length"][0])
    expected = torch.zeros_like(taste[0, 0])
    for event in range(length):
        item = int(batch["item"][0, event])
        liked = batch["numbers"][0, event, 0] - item / 10
        expected += model.ranking.implicit.weight[item]
        expected += liked * model.ranking.explicit.weight[item]
    assert torch.allclose(taste[0, length], expected / (length + 1) ** 0.5, atol=1e-5)


def test_a_regression_starts_as_the_biased_baseline(parts) -> None:
    model, *_, vectors = parts
    with torch.no_grad():
        model.ranking.usual.weight[5] = 0.4
        model.ranking.item_bias.weight[5, 0] = 0.1
    users = UserStates(torch.randn(1, 8), torch.tensor([[0.3]]), torch.randn(1, 16))
    logits = model.rank(users, torch.tensor([5]), vectors, _context(1))
    assert logits["stars"].item() == pytest.approx(0.4 + 0.1 + 0.3, rel=1e-6)
    # label scale: mean 3, deviation 1.25
    assert model.predict(logits)["stars"].item() == pytest.approx(3 + 1.25 * 0.8, rel=1e-6)


def test_predictions_stay_in_the_declared_range(parts) -> None:
    model, *_ = parts
    logits = {"stars": torch.tensor([-9.0, 9.0]), "like": torch.tensor([-9.0, 9.0])}
    predicted = model.predict(logits)
    assert predicted["stars"].tolist() == [1.0, 5.0]
    np.testing.assert_allclose(predicted["like"], 1 / (1 + np.exp([9.0, -9.0])), rtol=1e-5)


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
