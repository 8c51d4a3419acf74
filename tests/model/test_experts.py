"""Shared bottom, MMoE and PLE: each against its paper's equations, all against one contract."""

import copy
import re

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import Tensor, nn

from mtrec.model.dropout import bind_noise
from mtrec.model.experts import PLE, Gate, MMoE, build_experts
from mtrec.modelconfig import Experts, MMoEExperts, PLEExperts, SharedBottom

TASKS = ["a", "b", "c"]
KINDS: dict[str, Experts] = {
    "shared_bottom": SharedBottom(hidden=[6, 5], dropout=0.4),
    "mmoe": MMoEExperts(kind="mmoe", num_experts=3, hidden=[6, 5], dropout=0.4),
    "ple": PLEExperts(
        kind="ple", num_shared=2, num_specific=2, num_levels=1, hidden=[6, 5], dropout=0.4
    ),
    "ple of three levels": PLEExperts(
        kind="ple", num_shared=1, num_specific=2, num_levels=3, hidden=[6, 5], dropout=0.4
    ),
}


@pytest.fixture(params=KINDS)
def experts(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_experts(KINDS[request.param], input_dim=4, tasks=TASKS).eval()


def _output(layers: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Apply linear layers and exact GELUs in NumPy."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            inputs = inputs @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            inputs = inputs * 0.5 * (1 + erf(inputs / np.sqrt(2)))
    return inputs


def _share(gate: Gate, selector: np.ndarray) -> np.ndarray:
    return softmax(selector @ gate.weight.weight.detach().numpy().T, axis=1)


# ---- the papers' equations ----------------------------------------------------------------------


def test_the_shared_bottom_is_a_stack_of_linear_and_gelu_layers() -> None:
    bottom = build_experts(KINDS["shared_bottom"], input_dim=4, tasks=["a"]).eval()
    inputs = torch.randn(5, 4)
    expected = _output(bottom.layers, inputs.numpy())
    np.testing.assert_allclose(bottom(inputs)["a"].detach().numpy(), expected, atol=1e-6)


def test_all_tasks_of_a_shared_bottom_read_the_same_representation() -> None:
    bottom = build_experts(KINDS["shared_bottom"], input_dim=4, tasks=TASKS).eval()
    outputs = bottom(torch.randn(2, 4))
    assert outputs["a"] is outputs["b"]


def test_a_gate_mixes_by_softmax_of_a_linear_map_without_bias() -> None:
    gate = Gate(input_dim=2, num_experts=2)
    with torch.no_grad():
        gate.weight.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    selector = torch.tensor([[np.log(3.0), 7.0]], dtype=torch.float32)
    mixed = gate(selector, torch.tensor([[[4.0, 0.0], [0.0, 8.0]]]))
    # logits log 3 and 0: shares 3/4 and 1/4
    assert mixed.tolist() == [pytest.approx([3.0, 2.0], rel=1e-6)]
    assert gate.weight.bias is None


def test_mmoe_is_the_sum_of_experts_by_each_tasks_own_gate() -> None:
    torch.manual_seed(0)
    model: MMoE = build_experts(KINDS["mmoe"], input_dim=4, tasks=TASKS).eval()
    inputs = torch.randn(5, 4)
    found = model(inputs)
    outputs = [_output(expert, inputs.numpy()) for expert in model.experts]
    for task in TASKS:
        share = _share(model.gates[task], inputs.numpy())
        expected = sum(share[:, i : i + 1] * outputs[i] for i in range(3))
        np.testing.assert_allclose(found[task].detach().numpy(), expected, atol=1e-6)


def test_ple_follows_its_equations_level_by_level() -> None:
    torch.manual_seed(0)
    model: PLE = build_experts(KINDS["ple of three levels"], input_dim=4, tasks=TASKS).eval()
    inputs = torch.randn(5, 4)
    own, shared = dict.fromkeys(TASKS, inputs.numpy()), inputs.numpy()
    for number, level in enumerate(model.levels):
        common = [_output(expert, shared) for expert in level.shared]
        outputs = {
            task: [_output(expert, own[task]) for expert in level.specific[task]] for task in TASKS
        }
        every = [output for task in TASKS for output in outputs[task]] + common
        if number < 2:
            weights = _share(level.shared_gate, shared)
            following = sum(weights[:, i : i + 1] * every[i] for i in range(len(every)))
        else:
            following = shared
        extracted = {}
        for task in TASKS:
            chosen = outputs[task] + common
            weights = _share(level.gates[task], own[task])
            extracted[task] = sum(weights[:, i : i + 1] * chosen[i] for i in range(len(chosen)))
        own, shared = extracted, following
    for task, found in model(inputs).items():
        np.testing.assert_allclose(found.detach().numpy(), own[task], atol=1e-6)


def test_every_parameter_of_ple_is_used() -> None:
    model = build_experts(KINDS["ple of three levels"], input_dim=4, tasks=TASKS).eval()
    sum(output.square().sum() for output in model(torch.randn(3, 4)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("kind", "change", "added"),
    [
        # an expert of widths 6 and 5 over 4 inputs has 4*6+6 + 6*5+5 = 65 parameters
        ("mmoe", {"num_experts": 4}, 65 + 3 * 4),
        ("ple", {"num_shared": 3}, 65 + 3 * 4),
        ("ple", {"num_specific": 3}, 3 * (65 + 4)),
        # level 2: 2 + 3*2 experts over 5 inputs, 71 each, three gates of 4; level 1: a gate of 8
        ("ple", {"num_levels": 2}, 8 * 71 + 3 * 4 * 5 + 8 * 4),
        ("ple", {"hidden": [6, 5, 5]}, 8 * (5 * 5 + 5)),
        ("mmoe", {"hidden": [6, 5, 5]}, 3 * (5 * 5 + 5)),
    ],
)
def test_a_key_adds_the_parameters_that_it_should(kind: str, change: dict, added: int) -> None:
    def count(config: Experts) -> int:
        model = build_experts(config, input_dim=4, tasks=TASKS)
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(KINDS[kind].model_copy(update=change)) - count(KINDS[kind]) == added


# ---- the contract of all three ------------------------------------------------------------------


def test_a_batch_equals_a_loop_of_single_rows(experts: nn.Module) -> None:
    inputs = torch.randn(7, 4)
    together = experts(inputs)
    assert list(together) == TASKS
    for row in range(7):
        for task, alone in experts(inputs[row : row + 1]).items():
            assert alone.shape == (1, experts.output_dim)
            assert torch.allclose(alone[0], together[task][row], atol=1e-6)


def test_permuted_rows_give_permuted_outputs(experts: nn.Module) -> None:
    inputs, order = torch.randn(7, 4), torch.randperm(7)
    straight, permuted = experts(inputs), experts(inputs[order])
    for task in TASKS:
        assert torch.allclose(straight[task][order], permuted[task], atol=1e-6)


def test_no_rows_give_no_outputs(experts: nn.Module) -> None:
    assert all(output.shape == (0, 5) for output in experts(torch.zeros(0, 4)).values())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_weights_give_equal_outputs(kind: str) -> None:
    first, second = (build_experts(KINDS[kind], input_dim=4, tasks=TASKS).eval() for _ in "ab")
    inputs = torch.randn(3, 4)
    assert not torch.equal(first(inputs)["a"], second(inputs)["a"])
    second.load_state_dict(first.state_dict())
    for task in TASKS:
        assert torch.equal(first(inputs)[task], second(inputs)[task])


def test_shares_sum_to_one(experts: nn.Module) -> None:
    """If all experts of a level agree, every mixture of them is what they say."""
    levels = experts.levels if isinstance(experts, PLE) else [experts]
    expected: Tensor = torch.randn(6, 4)
    inputs = expected
    for level in levels:
        stacks = [part for part in level.modules() if type(part) is nn.Sequential]
        for stack in stacks[1:]:
            stack.load_state_dict(stacks[0].state_dict())
        expected = stacks[0](expected)
    for found in experts(inputs).values():
        assert torch.allclose(found, expected, atol=1e-5)


def test_dropout_is_on_in_training_only(experts: nn.Module) -> None:
    inputs = torch.randn(9, 4)
    assert torch.equal(experts(inputs)["a"], experts(inputs)["a"])
    experts.train()
    noise = bind_noise(experts)
    noise.rows = torch.arange(9)
    first, again = experts(inputs)["a"], experts(inputs)["a"]
    noise.step += 1
    assert torch.equal(first, again)
    assert not torch.equal(first, experts(inputs)["a"])


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_gradient_reaches_its_own_and_shared_parts_alone(
    experts: nn.Module, task: str
) -> None:
    experts(torch.randn(5, 4))[task].square().sum().backward()
    last = len(experts.levels) - 1 if isinstance(experts, PLE) else 0
    for name, parameter in experts.named_parameters():
        found = re.search(r"(?:levels\.(\d+)\.)?(specific|gates)\.([abc])\.", name)
        reached = found is None or found[3] == task
        if found is not None and not reached:
            # A level's shared gate hands every task's experts on to the level above, and with
            # them what their gates chose for them below.
            reached = int(found[1] or 0) < last - (found[2] == "gates")
        got = parameter.grad is not None and bool(parameter.grad.any())
        assert got == reached, name


def test_training_one_task_leaves_the_others_private_parts_alone() -> None:
    torch.manual_seed(0)
    model = build_experts(KINDS["ple"], input_dim=4, tasks=TASKS).eval()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(5, 4))["a"].square().sum().backward()
    optimizer.step()
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.split(".")[2:4][-1] for name in changed if "specific" in name} == {"a"}
    assert any("shared" in name for name in changed)
