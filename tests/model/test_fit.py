import copy
import math
import os
import socket
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from mtrec.config import Config, SampledSoftmax
from mtrec.errors import DataError
from mtrec.model.batches import epoch_batches, make_social_batch
from mtrec.model.fit import start_state, train_epoch, train_step
from mtrec.model.towers import whitening_matrix
from mtrec.model.validation import validate

CPU = torch.device("cpu")


def test_losses_fall_on_planted_structure(any_config, make_data) -> None:
    config = any_config
    data, _ = make_data(40)
    state = start_state(config, data, CPU)
    first = train_epoch(state, config, data)
    for _ in range(15):
        last = train_epoch(state, config, data)
    assert last["item"] < 0.9 * first["item"]
    assert last["stars"] < first["stars"]
    # a user's items are the 10 of its group: a perfect model reaches log(10), popularity log(20)
    assert last["item"] < math.log(20) - 0.3


@pytest.mark.parametrize("asked", [0, 3, 100])
def test_the_learning_rate_grows_for_a_tenth_of_all_steps_at_most(
    config, make_data, asked: int
) -> None:
    config = _with_train(config, warmup_steps=asked, epochs=10)
    data, _ = make_data(40)
    state = start_state(config, data, CPU)
    rates = []
    for _ in range(2):
        for batch in epoch_batches(config, data, state.epoch, rank=0, num_workers=1):
            train_step(state, batch, config)
            rates.append(state.optimizer.param_groups[0]["lr"] / config.train.learning_rate)
        state.epoch += 1
    steps = len(rates) // 2
    assert steps > 3
    growth = max(1, min(asked, steps))  # there are ten epochs
    assert rates == pytest.approx([min(1.0, (at + 1) / growth) for at in range(len(rates))])


def test_the_losses_of_a_fixed_seed_stay_what_they_were(config, make_data) -> None:
    # Recorded while content and behaviour alone could have losses too, with weights of 0 for them.
    train = config.train.model_copy(update={"ranking_decay": 0.1})
    config = config.model_copy(update={"train": train})
    data, _ = make_data()
    state = start_state(config, data, CPU)
    for expected in (
        {"item": 3.3437681, "stars": 0.4440475, "like": 0.6913099},
        {"item": 2.9820109, "stars": 0.4003370, "like": 0.6768361},
        {"item": 2.8098731, "stars": 0.3674919, "like": 0.6606590},
    ):
        found = train_epoch(state, config, data)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_sampled_softmax_learns_planted_structure(any_config, make_data) -> None:
    softmax = SampledSoftmax(kind="sampled", num_negatives=12)
    config = _with_train(any_config, softmax=softmax)
    data, held_out = make_data(40)
    state = start_state(config, data, CPU)
    for _ in range(15):
        train_epoch(state, config, data)
    found = validate(state.model, config, data, held_out)["item/hr@10"]
    # a user's items are the 10 of its group, of which at least half are seen: chance is .5 to .6
    assert found > 0.75


def test_ranking_starts_at_the_items_shrunk_means(config, make_data) -> None:
    data, _ = make_data()
    usual = start_state(config, data, CPU).model.ranking.usual.weight
    item = int(data.train.item_index[0])
    values = (data.train.numbers["rating"][data.train.item_index == item] - 3.0) / 1.25
    assert usual[item, 0].item() == pytest.approx(values.sum() / (len(values) + 5.0), rel=1e-5)
    assert not usual[:2].any()


def test_whitening_is_fitted_on_the_texts_of_trained_items_and_of_users_with_text(
    config, make_data
) -> None:
    data, _ = make_data()
    data.trained[4], data.items.text[4] = 0.0, 100.0  # held-out items must not count
    data.items.has_text[6], data.items.text[6] = 0.0, 0.0
    texts = torch.randn(9, 7, generator=torch.Generator().manual_seed(0)) + 1.0
    texts[0] = 0.0  # of users without a text
    data = _replaced(data, users=_replaced(data.users, texts=texts))
    model = start_state(config, data, CPU).model
    counted = [item for item in range(2, 22) if data.trained[item] and item != 6]
    for tower, rows in ((model.items.content, data.items.text[counted]), (model.users, texts[1:])):
        assert torch.allclose(tower.mean, rows.mean(0), atol=1e-6)
        assert torch.allclose(tower.whitening, whitening_matrix(rows, 4), atol=1e-5)


def test_resuming_from_a_checkpoint_equals_going_on(any_config, make_data) -> None:
    config = _with_train(_with_dropout(any_config), balance="uncertainty")
    data, _ = make_data()
    straight = start_state(config, data, CPU)
    train_epoch(straight, config, data)
    saved = copy.deepcopy(straight.state_dict())
    train_epoch(straight, config, data)
    resumed = start_state(config, data, CPU)
    resumed.load_state_dict(saved)
    train_epoch(resumed, config, data)
    assert resumed.step == straight.step
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    weights = straight.objective.balance.weights()
    assert resumed.objective.balance.weights() == weights
    assert len({*weights.values(), 1.0}) == 4


def test_friends_start_at_the_best_weights_of_counts(config, make_data, befriend) -> None:
    config, data = befriend(config, make_data(40)[0])
    head = start_state(config, data, CPU).model.social
    batch = make_social_batch(config, data, data.social.links.pairs, rank=0, num_workers=1)
    nothing = torch.zeros(len(batch.rows), 1)

    def value(weights: torch.Tensor) -> float:
        with torch.no_grad():
            head.weights.copy_(weights)
            loss = head.loss(nothing, batch)
            return float(loss.total / loss.count + 1e-3 * weights.square().sum())

    best = head.weights.detach().clone()
    least = value(best)
    for step in (0.3, -0.3):
        for column in range(2):
            moved = best.clone()
            moved[column] += step
            assert value(moved) > least


def test_friends_are_learned_from_histories(any_config, make_data, befriend) -> None:
    # Friends met the items of one group; what they have in common is not told.
    config, data = befriend(any_config, make_data(40)[0], held_out=0.3)
    state = start_state(config, data, CPU)
    state.model.social.weights.requires_grad_(False).zero_()
    before = validate(state.model, config, data, data.train.select(data.train.split > 0))
    first = train_epoch(state, config, data)
    for _ in range(10):
        last = train_epoch(state, config, data)
    after = validate(state.model, config, data, data.train.select(data.train.split > 0))

    assert last["friends"] < first["friends"]
    # Who is of the user's group and no known friend: half of 40 users, about 13 of them.
    assert after["friends/ndcg@10"] > 1.2 * before["friends/ndcg@10"]


def test_a_step_without_links_leaves_the_other_tasks_as_they_are(
    config, make_data, befriend
) -> None:
    social, data = befriend(config, make_data()[0])
    state = start_state(social, data, CPU)
    batch = next(epoch_batches(social, data, 0, rank=0, num_workers=1))

    sums = state.objective(_replaced(batch, social=None))
    assert [part.item() for part in sums["friends"]] == [0.0, 0.0]
    sums["friends"][0].backward()
    assert all(not p.grad.any() for p in state.model.social.parameters())


def test_an_epochs_loss_is_over_the_steps_that_have_the_task(config, make_data) -> None:
    data, _ = make_data()
    labels = np.full(data.train.num_events, np.nan, np.float32)
    labels[:3] = (1.0, 0.0, 1.0)
    sparse = {**data.train.labels, "like": labels}
    data = _replaced(data, train=_replaced(data.train, labels=sparse))
    config = _with_train(config, batch_size=1, learning_rate=1e-12)
    state = start_state(config, data, CPU)
    step = [
        state.objective(batch)["like"]
        for batch in epoch_batches(config, data, 0, rank=0, num_workers=1)
    ]
    (whole,) = [(total / count).item() for total, count in step if count > 0]
    assert train_epoch(state, config, data)["like"] == pytest.approx(whole, rel=1e-5)


def test_the_seed_decides_the_result(any_config, make_data) -> None:
    config = any_config
    data, _ = make_data()

    def loss(seed: int) -> float:
        changed = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        return train_epoch(start_state(changed, data, CPU), changed, data)["item"]

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_task(
    config, make_data
) -> None:
    data, _ = make_data()
    state = start_state(config, data, CPU)
    data.train.labels["stars"][:] = np.float32(np.inf)
    batch = next(epoch_batches(config, data, 0, rank=0, num_workers=1))
    batch.labels["stars"].fill_(1e30)
    before = copy.deepcopy(state.model.state_dict())
    with pytest.raises(DataError, match='task "stars" is inf at step 0'):
        train_step(state, batch, config)
    for name, value in before.items():
        assert torch.equal(value, state.model.state_dict()[name])


def test_the_exported_average_follows_the_warm_started_formula(config, make_data) -> None:
    data, _ = make_data()
    averaged = config.model_copy(
        update={"train": config.train.model_copy(update={"ema_decay": 0.5})}
    )
    state = start_state(averaged, data, CPU)
    batches = list(epoch_batches(averaged, data, 0, rank=0, num_workers=1))
    name = "items.collaborative.weight"
    values = []
    for batch in batches[:2]:
        train_step(state, batch, averaged)
        values.append(state.model.state_dict()[name].clone())
    # step 2: decay = min(.5, 3 / 12)
    expected = values[0] + (1 - 0.25) * (values[1] - values[0])
    assert torch.allclose(state.export_weights()[name], expected, atol=1e-7)


@pytest.mark.parametrize("balance", ["fixed", "uncertainty"])
@pytest.mark.parametrize("task", ["item", "stars", "like"])
def test_tasks_of_weight_0_give_no_gradient(any_config, make_data, task: str, balance: str) -> None:
    data, _ = make_data()
    tasks = [t.model_copy(update={"weight": 2.0 * (t.name == task)}) for t in any_config.tasks]
    config = _with_train(any_config.model_copy(update={"tasks": tasks}), balance=balance)
    state = start_state(config, data, CPU)
    batch = next(epoch_batches(config, data, 0, rank=0, num_workers=1))
    parameters = dict(state.model.named_parameters())

    def gradients(name: str | None) -> dict[str, torch.Tensor]:
        losses = {key: total / count for key, (total, count) in state.objective(batch).items()}
        if name is None:
            loss = state.objective.balance(losses)
        else:
            # The task alone, written out: s = 0 at the start, half of a squared error.
            half = 0.5 if (name, balance) == ("stars", "uncertainty") else 1.0
            loss = 2.0 * half * losses[name] / state.constants[name]
        found = torch.autograd.grad(loss, parameters.values(), materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    joint, alone = gradients(None), gradients(task)
    assert any(gradient.any() for gradient in joint.values())
    for name, gradient in alone.items():
        assert torch.allclose(joint[name], gradient, rtol=1e-5, atol=1e-7), name
    others = {"stars", "like"} - {task}
    for name in (f"ranking.heads.{other}.weight" for other in others):
        assert not joint[name].any()


@pytest.mark.parametrize("balance", ["fixed", "uncertainty"])
def test_where_every_weight_is_0_nothing_is_learned(any_config, make_data, balance: str) -> None:
    data, _ = make_data()
    tasks = [task.model_copy(update={"weight": 0.0}) for task in any_config.tasks]
    config = _with_train(any_config.model_copy(update={"tasks": tasks}), balance=balance)
    state = start_state(config, data, CPU)
    train_step(state, next(epoch_batches(config, data, 0, rank=0, num_workers=1)), config)
    for name, parameter in state.objective.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


def test_without_training_events_there_is_a_clear_error(config, make_data) -> None:
    data, _ = make_data()
    empty = data.train.select(np.zeros(data.train.num_events, bool))
    with pytest.raises(DataError, match="no training events"):
        start_state(config, _replaced(data, train=empty), CPU)


def test_two_workers_give_the_losses_of_one(any_config, make_data, befriend) -> None:
    softmax = SampledSoftmax(kind="sampled", num_negatives=9, distribution="popularity")
    config = _with_train(_with_dropout(any_config), balance="uncertainty", softmax=softmax)
    data, _ = make_data(9)  # 9 windows in batches of 4: the last batch needs a filler
    config, data = befriend(config, data)
    state = start_state(config, data, CPU)
    expected = [train_epoch(state, config, data) for _ in range(3)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_run_worker, (port, config, data, queue), nprocs=2)
    found = queue.get()
    for ours, theirs in zip(expected, found, strict=True):
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4), name


def _run_worker(rank: int, port: int, config: Config, data: Any, queue: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    state = start_state(config, data, CPU)
    state.wrapped = DistributedDataParallel(state.objective)
    losses = [train_epoch(state, config, data, rank=rank, num_workers=2) for _ in range(3)]
    if rank == 0:
        queue.put(losses)
    torch.distributed.destroy_process_group()


def _with_dropout(config: Config) -> Config:
    model = config.model
    parts = {
        "id_dropout": 0.2,
        "history": model.history.model_copy(update={"dropout": 0.3}),
        "experts": model.experts.model_copy(update={"dropout": 0.3}),
    }
    return config.model_copy(update={"model": model.model_copy(update=parts)})


def _with_train(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _replaced(data: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(data, **changes)
