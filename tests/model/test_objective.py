from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from mtrec.data.windows import Windows, hold_out
from mtrec.model.balance import FixedBalance
from mtrec.model.batches import epoch_batches, make_batch
from mtrec.model.network import build_model
from mtrec.model.objective import JointObjective, Negatives


@pytest.fixture
def parts(any_config, sizes, make_data):
    config = any_config
    torch.manual_seed(0)
    data, _ = make_data()
    objective = JointObjective(
        build_model(config.model, config.tasks, sizes),
        config.tasks,
        FixedBalance({}, {}),
    )
    with torch.no_grad():
        objective.model.items.bias.weight.normal_()
        objective.model.items.collaborative.weight.normal_()
    offsets = data.train.offsets
    windows = Windows(
        np.arange(3), offsets[:3], np.minimum(offsets[1:4], offsets[:3] + 6), np.zeros(3, bool)
    )
    batch = make_batch(
        data,
        windows,
        rows=np.arange(3),
        trained_N=data.trained,
        negatives=None,
        device=torch.device("cpu"),
    )
    if config.model.history.kind == "set":
        hidden = hold_out(windows.user, batch.history["item"].numpy(), 0.4, seed=1)
        batch.history["held_out"] = torch.from_numpy(hidden)
        assert 0 < hidden.sum() < (batch.history["item"] > 1).sum()
    return objective.eval(), batch, data


def test_the_retrieval_loss_equals_a_loop_over_events(parts) -> None:
    objective, batch, _ = parts
    sums = objective(batch)
    model = objective.model
    vectors = model.encode_items(batch.items, batch.trained)
    expected, count = 0.0, 0
    items = batch.history["item"]
    # A sequence predicts every event, a set those that it hides, among what it does not know.
    targets = batch.history.get("held_out", items > 1)
    states = model.encode_history(batch.history, batch.users, vectors, *torch.nonzero(targets).T)
    for number, (row, time) in enumerate(torch.nonzero(targets).tolist()):
        user, target = states.vector[number], items[row, time] - 2
        known = [] if "held_out" not in batch.history else items[row][~targets[row]]
        known = [int(item) - 2 for item in known if item > 1]
        logits = (vectors.content + vectors.collaborative)[2:] @ user + vectors.bias[2:]
        logits[known] = -torch.inf
        expected += functional.cross_entropy(logits, target).item()
        count += 1
    assert sums["item"][0].item() == pytest.approx(expected, rel=1e-5)
    assert sums["item"][1].item() == count


def test_a_regression_starts_at_the_loss_of_standardised_labels(parts) -> None:
    objective, batch, _ = parts
    total, count = objective(batch)["stars"]
    # the untrained prediction is the user's mean residual without the target (usual is zero)
    row_P, time_P = torch.nonzero(batch.history["item"] > 1, as_tuple=True)
    model = objective.model
    vectors = model.encode_items(batch.items, batch.trained)
    states = model.encode_history(batch.history, batch.users, vectors, row_P, time_P)
    residual = states.residual[:, 0]
    label = (batch.labels["stars"][row_P, time_P] - 3.0) / 1.25
    assert total.item() == pytest.approx(((residual - label) ** 2).sum().item(), rel=1e-5)
    assert count.item() == len(label)


def test_an_absent_task_gives_no_gradient_to_its_head(parts) -> None:
    objective, batch, _ = parts
    batch.labels["like"].fill_(torch.nan)
    sums = objective(batch)
    total, count = sums["like"]
    assert (total.item(), count.item()) == (0.0, 0.0)
    sum(total for total, _ in sums.values()).backward()
    head = objective.model.ranking.heads
    assert not head["like"].weight.grad.any()
    assert head["stars"].weight.grad.any()


def test_a_dropped_row_is_out_of_history_and_targets_alike(parts) -> None:
    objective, batch, data = parts
    dropped = batch.history["item"][0, 0].item()
    data.trained[dropped] = 0.0
    for total, _ in objective(batch).values():
        if total.requires_grad:
            total.backward(retain_graph=True)
    gradient = objective.model.items.collaborative.weight.grad
    assert not gradient[dropped].any()
    assert gradient[batch.history["item"][0, 1]].any()


def test_rows_of_padding_and_unknown_get_no_gradient(parts) -> None:
    objective, batch, _ = parts
    total, _ = objective(batch)["item"]
    total.backward()
    assert not objective.model.items.collaborative.weight.grad[:2].any()


def test_sampled_losses_equal_a_loop_over_targets(parts) -> None:
    objective, batch, _ = parts
    drawn, correction = torch.tensor([3, 9, 9, 14, 20]), torch.linspace(-2.0, 1.0, 5)
    sums = objective(replace(batch, negatives=Negatives(drawn, correction)))
    vectors = objective.model.encode_items(batch.items, batch.trained)
    items = batch.history["item"]
    targets = batch.history.get("held_out", items > 1)
    states = objective.model.encode_history(
        batch.history, batch.users, vectors, *torch.nonzero(targets).T
    )
    expected = 0.0
    for number, (row, time) in enumerate(torch.nonzero(targets).tolist()):
        target = int(items[row, time])
        known = [] if "held_out" not in batch.history else items[row][~targets[row]].tolist()
        logits = vectors.fused @ states.vector[number] + vectors.bias
        rest = [
            logits[item] - minus
            for item, minus in zip(drawn, correction, strict=True)
            if item != target and int(item) not in known
        ]
        told = torch.stack([logits[target], *rest])
        expected += functional.cross_entropy(told, torch.tensor(0)).item()
    assert sums["item"][0].item() == pytest.approx(expected, rel=1e-5)


def test_without_ranking_tasks_the_retrieval_loss_is_the_same(parts, any_config) -> None:
    objective, batch, _ = parts
    alone = JointObjective(
        objective.model,
        [task for task in any_config.tasks if task.kind == "retrieval"],
        FixedBalance({}, {}),
    ).eval()
    whole, found = objective(batch), alone(batch)
    assert set(found) == {"item"}
    assert found["item"][0].item() == pytest.approx(whole["item"][0].item(), rel=1e-6)
    assert found["item"][1].item() == whole["item"][1].item()


@pytest.mark.parametrize("kept", [("retrieval",), ("retrieval", "regression"), None])
def test_whatever_may_change_takes_part_in_some_loss(parts, any_config, kept) -> None:
    """Data-parallel training waits for the gradient of each of them."""
    full, batch, _ = parts
    tasks = [task for task in any_config.tasks if kept is None or task.kind in kept]
    model = build_model(any_config.model, tasks, full.sizes)
    objective = JointObjective(model, tasks, FixedBalance({}, {}))

    torch.stack([total for total, _ in objective(batch).values()]).sum().backward()

    idle = [
        name
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert idle == []


def test_items_that_a_step_does_not_use_are_not_encoded(any_config, make_data, befriend) -> None:
    config, data = befriend(any_config, make_data()[0])
    objective = JointObjective(
        build_model(config.model, config.tasks, data.sizes), config.tasks, FixedBalance({}, {})
    ).eval()
    whole = next(epoch_batches(config, data, 0, rank=0, num_workers=1))
    # As if only these windows had events, so that the links' users have items that windows lack.
    whole.history["item"][1:] = 0
    sampled = replace(whole, negatives=Negatives(torch.tensor([3, 9, 9]), torch.zeros(3)))
    encoded = []
    objective.model.items.content.register_forward_pre_hook(
        lambda _, inputs: encoded.append(len(inputs[0].numbers))
    )

    found = []
    for batch in (whole, sampled):
        objective.zero_grad()
        sums = objective(batch)
        torch.stack([sums[name][0] for name in ("stars", "like", "friends")]).sum().backward()
        gradients = [p.grad.clone() for p in objective.model.items.content.parameters()]
        found.append([sums["stars"][0], sums["like"][0], sums["friends"][0], *gradients])

    torch.testing.assert_close(found[1], found[0])
    used = {*whole.history["item"].flatten().tolist(), 3, 9}
    used |= set(whole.social.history["item"].flatten().tolist())
    assert encoded == [data.sizes.num_items, len(used)]
    assert len(used) < data.sizes.num_items
