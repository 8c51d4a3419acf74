import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from mtrec.model.balance import (
    build_balance,
    constant_binary_loss,
    constant_retrieval_loss,
)


def test_constant_binary_loss_is_the_log_loss_of_predicting_the_share() -> None:
    labels = np.array([1, 1, 1, 0, np.nan], np.float32)
    expected = log_loss([1, 1, 1, 0], [0.75] * 4)
    assert constant_binary_loss(labels) == pytest.approx(expected)


def test_constant_retrieval_loss_is_the_entropy_of_popularity() -> None:
    # shares 1/2, 1/4, 1/4: 1.5 bits
    assert constant_retrieval_loss(np.array([0, 2, 1, 1])) == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize("labels", [[1.0, 1.0], [0.0], [], [np.nan]])
def test_a_label_that_never_varies_gives_a_positive_constant(labels: list[float]) -> None:
    assert constant_binary_loss(np.array(labels, np.float32)) > 0


LOSSES = {"stars": 8.0, "like": 3.0}
WEIGHTS = {"stars": 2.0, "like": 1.0}
CONSTANTS = {"stars": 4.0, "like": 0.5}


def _losses() -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in LOSSES.items()}


def test_fixed_sums_each_loss_over_its_constant_times_its_weight() -> None:
    balance = build_balance("fixed", WEIGHTS, CONSTANTS, squared={"stars"})
    assert balance(_losses()).item() == pytest.approx(2.0 * 8 / 4 + 3 / 0.5)
    assert balance(_losses(), {"like"}).item() == pytest.approx(2.0 * 8 / 4)
    assert list(balance.parameters()) == []


def test_uncertainty_is_the_formula_of_kendall() -> None:
    balance = build_balance("uncertainty", WEIGHTS, CONSTANTS, squared={"stars"})
    with torch.no_grad():
        balance.log_variance["stars"].fill_(math.log(4.0))  # sigma = 2
        balance.log_variance["like"].fill_(math.log(0.25))  # sigma = 1/2
    # 2 * (8/4 / (2 * 4) + log 2) + 1 * (3/.5 / .25 + log 1/2)
    expected = 2 * (2 / 8 + math.log(2)) + (6 * 4 - math.log(2))
    assert balance(_losses()).item() == pytest.approx(expected, rel=1e-6)
    assert balance.weights() == pytest.approx({"stars": 0.25, "like": 4.0})


def test_uncertainty_settles_where_the_noise_is_what_the_loss_says() -> None:
    balance = build_balance("uncertainty", WEIGHTS, CONSTANTS, squared={"stars"})
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        balance(_losses()).backward()
        optimizer.step()
    # d/ds (a L/C exp(-s) + s/2) = 0: exp(s) = 2 a L/C, a = 1/2 for a squared error
    assert balance.weights() == pytest.approx({"stars": 4 / 8, "like": 0.5 / 3 / 2}, rel=1e-2)


def test_an_absent_task_teaches_its_uncertainty_nothing() -> None:
    balance = build_balance("uncertainty", WEIGHTS, CONSTANTS, squared={"stars"})
    balance(_losses(), {"like"}).backward()
    assert balance.log_variance["like"].grad.item() == 0.0
    assert balance.log_variance["stars"].grad.item() != 0.0
