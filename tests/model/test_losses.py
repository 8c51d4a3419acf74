import math

import pytest
import torch

from mtrec.model.losses import binary_loss, regression_loss, retrieval_loss


def test_retrieval_loss_is_minus_log_softmax_of_the_target() -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf, 0.0, math.log(3.0)]])
    # softmax = [1/4, 3/4] over the two items
    loss = retrieval_loss(logits, torch.tensor([3]), torch.tensor([0]))
    assert loss.total.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert loss.count.item() == 1.0


def test_retrieval_loss_leaves_out_padding_and_unknown_targets() -> None:
    logits = torch.randn(3, 5)
    logits[:, :2] = -torch.inf
    logits.requires_grad_()
    loss = retrieval_loss(logits, torch.tensor([0, 1, 4]), torch.arange(3))
    loss.total.backward()
    assert loss.count.item() == 1.0
    assert torch.equal(logits.grad[:2], torch.zeros(2, 5))
    assert logits.grad[2].abs().sum() > 0


def test_one_state_may_predict_several_targets() -> None:
    logits = torch.tensor(
        [[-torch.inf, -torch.inf, 0.0, math.log(3.0)], [-torch.inf] * 2 + [0.0] * 2]
    )
    loss = retrieval_loss(logits, torch.tensor([3, 2, 2]), torch.tensor([0, 0, 1]))
    assert loss.total.item() == pytest.approx(math.log(4 / 3) + math.log(4) + math.log(2), rel=1e-6)


def test_regression_loss_sums_squared_errors_of_known_labels() -> None:
    loss = regression_loss(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 4.0, torch.nan]))
    assert loss.total.item() == pytest.approx(1.0 + 4.0)
    assert loss.count.item() == 2.0


def test_binary_loss_is_the_entropy_of_a_bernoulli() -> None:
    # p = 3/4 for label 1, p = 1/5 for label 0
    logits = torch.tensor([math.log(3.0), math.log(0.25)])
    loss = binary_loss(logits, torch.tensor([1.0, 0.0]))
    assert loss.total.item() == pytest.approx(-math.log(0.75) - math.log(0.8), rel=1e-6)


@pytest.mark.parametrize("loss_of", [regression_loss, binary_loss])
def test_a_task_without_labels_has_zero_loss_and_zero_gradient(loss_of) -> None:
    prediction = torch.tensor([0.3, -2.0], requires_grad=True)
    loss = loss_of(prediction, torch.full((2,), torch.nan))
    loss.total.backward()
    assert (loss.total.item(), loss.count.item()) == (0.0, 0.0)
    assert torch.equal(prediction.grad, torch.zeros(2))


@pytest.mark.parametrize("loss_of", [regression_loss, binary_loss])
def test_gradients_agree_with_finite_differences(loss_of) -> None:
    prediction = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1.0, 0.0, torch.nan], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, label).total, prediction)
