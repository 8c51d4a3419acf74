import math

import pytest
import torch

from mtrec.model import losses
from mtrec.model.losses import (
    LossSum,
    binary_loss,
    regression_loss,
    retrieval_loss,
    sampled_retrieval_loss,
)


def _full(logits, target, state=None, given=None) -> LossSum:
    """Give the loss of logits as they are: each state is a unit vector, its row its own item."""
    state = torch.arange(len(target)) if state is None else state
    nothing = logits.new_zeros(logits.shape[1])
    nothing[:2] = -torch.inf
    users = torch.eye(len(logits), dtype=logits.dtype)
    return retrieval_loss(users, logits.T, nothing, target, state, given)


def test_retrieval_loss_is_minus_log_softmax_of_the_target() -> None:
    logits = torch.tensor([[5.0, 5.0, 0.0, math.log(3.0)]])
    # softmax = [1/4, 3/4] over the two items
    loss = _full(logits, torch.tensor([3]))
    assert loss.total.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert loss.count.item() == 1.0


def test_retrieval_loss_leaves_out_padding_and_unknown_targets() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    loss = _full(logits, torch.tensor([0, 1, 4]))
    loss.total.backward()
    assert loss.count.item() == 1.0
    assert torch.equal(logits.grad[:2], torch.zeros(2, 5))
    assert logits.grad[2].abs().sum() > 0


def test_one_state_may_predict_several_targets() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, math.log(3.0)], [0.0] * 4])
    loss = _full(logits, torch.tensor([3, 2, 2]), torch.tensor([0, 0, 1]))
    assert loss.total.item() == pytest.approx(math.log(4 / 3) + math.log(4) + math.log(2), rel=1e-6)


def test_what_a_state_knows_is_no_rival_of_its_targets() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, math.log(3.0), 9.0], [0.0, 0.0, 0.0, 1.0, 1.0]])
    loss = _full(logits, torch.tensor([3, 4]), given=torch.tensor([[4, 0], [2, 3]]))
    assert loss.total.item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_a_state_without_targets_has_no_part_even_if_it_knows_everything() -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    loss = _full(logits, torch.tensor([3]), torch.tensor([0]), torch.tensor([[0, 0], [2, 3]]))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(math.log(2), rel=1e-6)
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[1], torch.zeros(4))


def test_retrieval_without_targets_is_zero_with_zero_gradients() -> None:
    users, vectors = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    nothing = torch.zeros(4)
    loss = retrieval_loss(users, vectors, nothing, torch.tensor([0, 1]), torch.tensor([0, 1]))
    loss.total.backward()
    assert (loss.total.item(), loss.count.item()) == (0.0, 0.0)
    assert torch.equal(users.grad, torch.zeros(2, 3))
    assert torch.equal(vectors.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("block_bytes", [1, 200, 1 << 20])
def test_retrieval_gradients_agree_with_finite_differences(monkeypatch, block_bytes: int) -> None:
    """Blocks of one state, of several, and all at once."""
    monkeypatch.setitem(losses._BLOCK_BYTES, "cpu", block_bytes)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (7, 3), (7,))
    ]
    closed = torch.tensor([-torch.inf] * 2 + [0.0] * 5, dtype=torch.float64)
    target, state = torch.tensor([2, 5, 6, 1, 3, 3]), torch.tensor([0, 0, 1, 2, 4, 1])
    given = torch.tensor([[0, 3], [2, 0], [0, 0], [2, 3], [4, 6]])

    def total(users, vectors, bias):
        return retrieval_loss(users, vectors, bias + closed, target, state, given).total

    assert torch.autograd.gradcheck(total, inputs)
    logits = (inputs[0] @ inputs[1].T + inputs[2] + closed).scatter(1, given, -torch.inf)
    shares = torch.log_softmax(logits, 1)[state, target][target > 1]
    assert total(*inputs).item() == pytest.approx(-shares.sum().item(), rel=1e-12)


def _sampled(logits, target, drawn, q, given=None) -> LossSum:
    """Give the sampled loss of logits as they are, see `_full`."""
    states = torch.arange(len(target))
    expected = (q[drawn] * len(drawn)).log()
    users, nothing = torch.eye(len(logits)), torch.zeros(logits.shape[1])
    return sampled_retrieval_loss(users, logits.T, nothing, target, states, drawn, expected, given)


@pytest.mark.parametrize("has_given", [False, True])
def test_drawing_every_item_once_gives_the_full_softmax(has_given: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 7)
    target = torch.tensor([2, 6, 1, 4])
    given = torch.tensor([[5, 3, 0], [0, 0, 0], [2, 3, 4], [2, 0, 6]]) if has_given else None
    full = _full(logits, target, given=given)
    # The target itself is drawn too and must not count twice.
    found = _sampled(logits, target, torch.arange(2, 7), torch.full((7,), 1 / 5), given)
    assert found.total.item() == pytest.approx(full.total.item(), rel=1e-6)
    assert found.count.item() == 3.0


def test_draws_count_by_how_often_they_are_expected() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.5]])
    q = torch.tensor([0.0, 0.0, 0.5, 0.2, 0.3])
    found = _sampled(logits, torch.tensor([3]), torch.tensor([2, 2, 4]), q)
    partition = math.exp(2.0) + 2 * math.exp(1.0) / (3 * 0.5) + math.exp(0.5) / (3 * 0.3)
    assert found.total.item() == pytest.approx(math.log(partition) - 2.0, rel=1e-6)


@pytest.mark.parametrize("popular", [False, True])
def test_sampling_learns_what_the_full_softmax_learns(popular: bool) -> None:
    """Logits without inputs must become the log of the targets' shares, whatever is drawn."""
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.0, 0.0, 0.5, 0.3, 0.15, 0.05])
    q = share if popular else torch.tensor([0.0, 0.0, 0.25, 0.25, 0.25, 0.25])
    bias = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([bias], lr=0.02)
    for step in range(1500):
        target = torch.multinomial(share, 256, replacement=True, generator=generator)
        drawn = torch.multinomial(q, 60, replacement=True, generator=generator)
        optimizer.param_groups[0]["lr"] = 0.02 if step < 1000 else 0.002
        optimizer.zero_grad()
        _sampled(bias.expand(256, 6), target, drawn, q).total.div(256).backward()
        optimizer.step()
    learned = torch.softmax(bias.detach()[2:], 0)
    # Without the correction the popular draws would leave all items alike.
    assert learned.tolist() == pytest.approx(share[2:].tolist(), abs=0.03)


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
