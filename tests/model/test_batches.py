"""Batches: the same plan on every worker, another one each epoch."""

import itertools

import numpy as np
import pytest
import torch

from mtrec.config import SampledSoftmax
from mtrec.model.batches import epoch_batches, make_social_batch


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_drawn_negatives_follow_their_distribution(config, make_data, distribution: str) -> None:
    data, _ = make_data()
    softmax = SampledSoftmax(kind="sampled", num_negatives=20_000, distribution=distribution)
    drawing = config.model_copy(
        update={"train": config.train.model_copy(update={"softmax": softmax})}
    )
    first, other = (
        batch.negatives
        for batch in itertools.islice(epoch_batches(drawing, data, 0, rank=0, num_workers=1), 2)
    )
    again = next(epoch_batches(drawing, data, 0, rank=1, num_workers=2)).negatives
    assert torch.equal(first.item, again.item)
    assert not torch.equal(first.item, other.item)
    found = np.bincount(first.item.numpy(), minlength=22) / 20_000
    count = np.bincount(data.train.item_index, minlength=22) + 1.0
    weight = np.ones(22) if distribution == "uniform" else count
    expected = np.where(np.arange(22) > 1, weight, 0.0)
    expected /= expected.sum()
    # five standard deviations of a share of 20,000 draws
    np.testing.assert_allclose(found, expected, atol=5 * (0.25 / 20_000) ** 0.5)
    np.testing.assert_allclose(
        first.log_expected.exp().numpy(), 20_000 * expected[first.item.numpy()], rtol=1e-5
    )


def test_all_workers_drop_the_same_rows_and_each_step_drops_others(config, make_data) -> None:
    data, _ = make_data()
    data.trained[4] = 0.0
    dropping = config.model_copy(
        update={"model": config.model.model_copy(update={"id_dropout": 0.3})}
    )

    def masks(rank: int) -> torch.Tensor:
        steps = [
            batch.trained
            for epoch in range(20)
            for batch in epoch_batches(dropping, data, epoch, rank=rank, num_workers=2)
        ]
        return torch.stack(steps)

    first, second = masks(0), masks(1)
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == len(first)
    assert not first[:, data.trained == 0].any()
    # standard error of the share of more than 60 draws of 19 rows: below .014
    assert first[:, data.trained > 0].mean().item() == pytest.approx(0.7, abs=0.05)


def test_each_epoch_hides_another_part_of_a_set(any_config, make_data) -> None:
    data, _ = make_data()
    epochs = [
        {
            (int(batch.history["item"][row, 0]), tuple(batch.history["held_out"][row].tolist()))
            for batch in epoch_batches(any_config, data, epoch, rank=0, num_workers=1)
            for row in range(len(batch.history["length"]))
        }
        if any_config.model.history.kind == "set"
        else set()
        for epoch in (0, 0, 1)
    ]
    assert epochs[0] == epochs[1]
    assert not epochs[0] or epochs[0] != epochs[2]


def test_an_epoch_passes_every_link_once_from_both_ends(config, make_data, befriend) -> None:
    config, data = befriend(config, make_data(14)[0])
    links = {tuple(pair) for pair in data.social.links.both_ways().tolist()}

    for epoch in (0, 1):
        passed = []
        for batch in epoch_batches(config, data, epoch, rank=0, num_workers=1):
            people = batch.social.rows - (1 << 60)
            assert people.tolist() == list(range(len(people)))
            # A user is known by the features that only he has.
            number = ((batch.social.users.numbers[:, 0] + 1) / 2 * 13).round().long()
            passed += zip(
                number[batch.social.anchor].tolist(),
                number[batch.social.friend].tolist(),
                strict=True,
            )
        assert len(passed) == len(set(passed))
        assert set(passed) == links


def test_friends_are_told_from_users_who_are_no_friends(config, make_data, befriend) -> None:
    config, data = befriend(config, make_data(14)[0])
    pairs = data.social.links.pairs[:9]
    people = np.unique(pairs)
    friends = data.social.graph.links.toarray() > 0

    whole = make_social_batch(config, data, pairs, rank=0, num_workers=1)
    assert len(whole.anchor) == 18
    for row, asking in enumerate(people[whole.anchor]):
        wanted = [not friends[asking, other] and other != asking for other in people]
        assert whole.is_open[row].tolist() == wanted
        assert friends[asking, people[whole.friend[row]]]
    halves = [make_social_batch(config, data, pairs, rank=r, num_workers=2) for r in (0, 1)]
    assert sorted([*halves[0].anchor.tolist(), *halves[1].anchor.tolist()]) == sorted(
        whole.anchor.tolist()
    )
    assert torch.equal(halves[1].history["item"], whole.history["item"])


def test_a_candidates_probability_is_that_of_being_drawn(config, make_data, befriend) -> None:
    config, data = befriend(config, make_data(14)[0])
    rng = np.random.default_rng(0)
    size, times = 5, 4000
    named, told = np.zeros(14), np.zeros(14)
    for _ in range(times):
        pairs = data.social.links.pairs[rng.permutation(len(data.social.links))[:size]]
        named[np.unique(pairs)] += 1
    for _ in range(40):
        pairs = data.social.links.pairs[rng.permutation(len(data.social.links))[:size]]
        batch = make_social_batch(config, data, pairs, rank=0, num_workers=1)
        told[np.unique(pairs)] = batch.log_p.exp().numpy()

    # Drawn without return is a little likelier to name a user than the formula says.
    assert told == pytest.approx(named / times, rel=0.12)
