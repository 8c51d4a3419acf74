import numpy as np
import pytest
import torch

from mtrec.svdpp import SvdPP, _Objective

USERS, ITEMS, FACTORS = 7, 9, 3


@pytest.fixture
def labels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of seven users, one of them without any; user 2 says something of an item twice."""
    rng = np.random.default_rng(0)
    pairs = sorted(
        (user, int(item))
        for user in range(USERS - 1)
        for item in rng.choice(np.arange(2, ITEMS), 4, replace=False)
    )
    pairs.insert(9, pairs[8])
    user, item = np.array(pairs).T
    return user, item.astype(np.int32), rng.integers(1, 6, len(user)).astype(np.float64)


def oracle(user, item, label, parts, reg: float, reg_bias: float) -> torch.Tensor:
    """Half the objective, label by label as Koren writes it."""
    user_bias, item_bias, own, items, met = parts
    mean, total = label.mean(), torch.tensor(0.0, dtype=torch.float64)
    for u, i, value in zip(user.tolist(), item.tolist(), label.tolist(), strict=True):
        touched = sorted(set(item[user == u].tolist()))
        vector = own[u] + met[touched].sum(0) / len(touched) ** 0.5
        error = mean + user_bias[u] + item_bias[i] + items[i] @ vector - value
        squares = own[u].square().sum() + items[i].square().sum() + met[touched].square().sum()
        total = total + error**2 + reg * squares
        total = total + reg_bias * (user_bias[u] ** 2 + item_bias[i] ** 2)
    return total / 2


def test_value_and_gradient_are_those_of_a_loop_over_labels(labels) -> None:
    objective = _Objective(*labels, (USERS, ITEMS), factors=FACTORS, reg=0.3, reg_bias=0.2)
    at = np.random.default_rng(1).normal(size=len(objective.start()))
    value, gradient = objective(at)
    parts = [torch.tensor(part, requires_grad=True) for part in objective.parts(at)]
    expected = oracle(*labels, parts, 0.3, 0.2)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-12)
    found = np.concatenate([part.grad.numpy().ravel() for part in parts])
    np.testing.assert_allclose(gradient, found, rtol=1e-9, atol=1e-9)


def test_predictions_are_the_models_at_a_minimum(labels) -> None:
    user, item, label = labels
    settings = {"factors": FACTORS, "reg": 0.01, "reg_bias": 0.01}
    model = SvdPP.fit(*labels, num_users=USERS, num_items=ITEMS, **settings, iterations=500)
    objective = _Objective(*labels, (USERS, ITEMS), **settings)
    # The fit is a minimum: what it predicts for the labels leaves no slope in the users' biases.
    error = model.predict(user, item) - label
    slope = np.bincount(user, error, USERS) + 0.01 * np.bincount(user, minlength=USERS) * (
        model._user_bias
    )
    assert np.abs(slope).max() < 1e-2
    assert np.sqrt(np.mean(error**2)) < 0.5 * label.std()
    assert objective(objective.start())[0] > 0.5 * float(error @ error)
    # Nothing is known of the last user, nor of the first two items.
    assert model.predict(np.array([6]), np.array([0], np.int32)) == pytest.approx(label.mean())


def test_factors_find_what_biases_cannot(labels) -> None:
    rng = np.random.default_rng(2)
    users, items = rng.normal(size=(60, 1)), rng.normal(size=(42, 1))
    user = np.repeat(np.arange(60), 20)
    item = np.concatenate([rng.choice(np.arange(2, 42), 20, replace=False) for _ in range(60)])
    label = (users[user] * items[item])[:, 0]
    is_held_out = rng.random(len(user)) < 0.2
    model = SvdPP.fit(
        user[~is_held_out],
        item[~is_held_out].astype(np.int32),
        label[~is_held_out],
        num_users=60,
        num_items=42,
        factors=2,
        reg=0.01,
        reg_bias=0.01,
    )
    error = model.predict(user[is_held_out], item[is_held_out].astype(np.int32))
    assert np.std(error - label[is_held_out]) < 0.4 * np.std(label[is_held_out])


def test_without_labels_it_says_nothing() -> None:
    empty = np.zeros(0, np.int64)
    model = SvdPP.fit(
        *(empty, empty.astype(np.int32), np.zeros(0)),
        num_users=2, num_items=4, factors=2, reg=0.1, reg_bias=0.1,
    )  # fmt: skip
    assert model.predict(np.array([1]), np.array([3], np.int32)).tolist() == [0.0]
