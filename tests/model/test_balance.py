import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from mtrec.model.balance import (
    constant_binary_loss,
    constant_retrieval_loss,
    fixed_weights,
    weigh,
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


def test_weigh_sums_each_loss_over_its_constant_times_its_weight() -> None:
    factors = fixed_weights({"a": 2.0, "b": 1.0}, {"a": 4.0, "b": 0.5})
    total = weigh({"a": torch.tensor(8.0), "b": torch.tensor(3.0)}, factors)
    assert total.item() == pytest.approx(2.0 * 8 / 4 + 3 / 0.5)
