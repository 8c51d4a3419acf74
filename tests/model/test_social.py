"""The social head and its loss, against loops."""

import math

import pytest
import torch

from mtrec.model.social import SocialBatch, SocialHead
from mtrec.model.towers import FeatureInputs


@pytest.fixture
def head() -> SocialHead:
    torch.manual_seed(0)
    head = SocialHead(dim=5, num_counts=2)
    with torch.no_grad():
        head.log_scale.fill_(0.7)
        head.weights.copy_(torch.tensor([0.4, 1.5]))
    return head


def batch(anchor: list[int], friend: list[int], is_open: torch.Tensor) -> SocialBatch:
    generator = torch.Generator().manual_seed(1)
    nothing = torch.zeros(0)
    return SocialBatch(
        rows=torch.arange(is_open.shape[1]),
        history={},
        users=FeatureInputs(nothing, {}, {}, nothing, nothing),
        anchor=torch.tensor(anchor),
        friend=torch.tensor(friend),
        is_open=is_open,
        counts=torch.rand(len(anchor), is_open.shape[1], 2, generator=generator),
        log_p=torch.rand(is_open.shape[1], generator=generator).log(),
    )


@torch.no_grad()
def test_a_product_of_social_vectors_is_a_scaled_cosine(head: SocialHead) -> None:
    states = torch.randn(3, 5)
    vectors = head(states)

    projected = states @ head.project.weight.T
    cosine = torch.nn.functional.cosine_similarity(projected[0], projected[1], dim=0)
    assert float(vectors[0] @ vectors[1]) == pytest.approx(math.exp(0.7) * float(cosine), rel=1e-5)


@torch.no_grad()
def test_the_loss_is_that_of_a_softmax_over_who_is_open(head: SocialHead) -> None:
    is_open = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
    given = batch([0, 2], [1, 1], is_open)
    vectors = torch.randn(4, 3)

    found = head.loss(vectors, given)

    total = 0.0
    for row, (a, friend) in enumerate([(0, 1), (2, 1)]):
        z = [float(vectors[a] @ vectors[c] + given.counts[row, c] @ head.weights) for c in range(4)]
        partition = math.exp(z[friend]) + sum(
            math.exp(z[c]) / float(given.log_p[c].exp()) for c in range(4) if is_open[row, c]
        )
        total += math.log(partition) - z[friend]
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.count) == 2.0


@torch.no_grad()
def test_a_link_whose_candidates_are_all_friends_costs_nothing(head: SocialHead) -> None:
    found = head.loss(torch.randn(2, 3), batch([0], [1], torch.zeros(1, 2, dtype=torch.bool)))

    assert float(found.total) == pytest.approx(0.0, abs=1e-6)
