"""What the ranking tasks share below their heads: one signature, (P, D) in, (P, H) a task out.

Shared bottom, MMoE and PLE side by side, to be compared; `build_experts` is the only place that
chooses. An expert is the same stack of layers in all three, and a task's head (the papers' tower)
is the network's. Pure torch; knows nothing of users, items or losses.

Shape letters: P pairs of a user and an item, D input width, H output width, E experts.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrec.model.dropout import Dropout
from mtrec.modelconfig import Experts


def _expert(input_dim: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Build the layers of one expert: linear, GELU and dropout for each width."""
    layers: list[nn.Module] = []
    for width_in, width_out in zip([input_dim, *hidden], hidden, strict=False):
        layers += [nn.Linear(width_in, width_out), nn.GELU(), Dropout(dropout)]
    return nn.Sequential(*layers)


class SharedBottom(nn.Module):
    """One stack of layers that every task reads (Caruana 1997)."""

    def __init__(
        self, *, input_dim: int, hidden: Sequence[int], tasks: Sequence[str], dropout: float
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.output_dim = hidden[-1]
        self.layers = _expert(input_dim, hidden, dropout)

    def forward(self, inputs_PD: Tensor) -> dict[str, Tensor]:
        """Give each task the same representation (P, H)."""
        shared_PH = self.layers(inputs_PD)
        return dict.fromkeys(self.tasks, shared_PH)


class Gate(nn.Module):
    """Mix experts by softmax(W x), a linear map without bias (Ma et al. 2018, eq. 7)."""

    def __init__(self, *, input_dim: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Linear(input_dim, num_experts, bias=False)

    def forward(self, selector_PD: Tensor, experts_PEH: Tensor) -> Tensor:
        """Give the sum of the experts' outputs, each times its share: (P, H)."""
        share_PE = torch.softmax(self.weight(selector_PD), dim=-1)
        return torch.einsum("pe,peh->ph", share_PE, experts_PEH)


class MMoE(nn.Module):
    """Multi-gate mixture of experts (Ma et al. 2018): all experts are shared, a gate for each task.

    f_k(x) = sum over i of g_k(x)_i f_i(x), with g_k(x) = softmax(W_k x) (eqs. 6 and 7).
    """

    def __init__(
        self,
        *,
        input_dim: int,
        num_experts: int,
        hidden: Sequence[int],
        tasks: Sequence[str],
        dropout: float,
    ) -> None:
        super().__init__()
        self.output_dim = hidden[-1]
        self.experts = nn.ModuleList(
            _expert(input_dim, hidden, dropout) for _ in range(num_experts)
        )
        self.gates = nn.ModuleDict(
            {task: Gate(input_dim=input_dim, num_experts=num_experts) for task in tasks}
        )

    def forward(self, inputs_PD: Tensor) -> dict[str, Tensor]:
        """Give each task its own mixture (P, H)."""
        experts_PEH = torch.stack([expert(inputs_PD) for expert in self.experts], dim=1)
        return {task: gate(inputs_PD, experts_PEH) for task, gate in self.gates.items()}


class PLE(nn.Module):
    """Progressive layered extraction (Tang et al. 2020): own experts a task beside shared ones.

    A task reads its own and the shared experts, never another task's:
    g_k(x) = softmax(W_k x) [own_k(x); shared(x)] (eqs. 1 to 3). In level j > 1 what the levels
    below extracted takes the place of x (eq. 5), for the experts and for the gates; what the shared
    experts get comes from a gate over all experts of the level below (section 4.2).
    """

    def __init__(
        self,
        *,
        input_dim: int,
        num_shared: int,
        num_specific: int,
        num_levels: int,
        hidden: Sequence[int],
        tasks: Sequence[str],
        dropout: float,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.output_dim = hidden[-1]
        self.levels = nn.ModuleList(
            ExtractionLevel(
                input_dim=hidden[-1] if level else input_dim,
                num_shared=num_shared,
                num_specific=num_specific,
                hidden=hidden,
                tasks=tasks,
                dropout=dropout,
                is_last=level == num_levels - 1,
            )
            for level in range(num_levels)
        )

    def forward(self, inputs_PD: Tensor) -> dict[str, Tensor]:
        """Give each task what the last level extracted for it (P, H)."""
        own, shared = dict.fromkeys(self.tasks, inputs_PD), inputs_PD
        for level in self.levels:
            own, shared = level(own, shared)
        return own


class ExtractionLevel(nn.Module):
    """One level of PLE; alone it is the customized gate control of section 4.1.

    The last level has no gate for shared experts: nothing would read it.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        num_shared: int,
        num_specific: int,
        hidden: Sequence[int],
        tasks: Sequence[str],
        dropout: float,
        is_last: bool,
    ) -> None:
        super().__init__()

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(_expert(input_dim, hidden, dropout) for _ in range(count))

        self.shared = experts(num_shared)
        self.specific = nn.ModuleDict({task: experts(num_specific) for task in tasks})
        self.gates = nn.ModuleDict(
            {
                task: Gate(input_dim=input_dim, num_experts=num_specific + num_shared)
                for task in tasks
            }
        )
        self.shared_gate = (
            None
            if is_last
            else Gate(input_dim=input_dim, num_experts=len(tasks) * num_specific + num_shared)
        )

    def forward(
        self, own: Mapping[str, Tensor], shared_PD: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Extract once more: each task's (P, H), and what the next level's shared experts get.

        Args:
            own: task -> (P, D), what was extracted for it below; the input at the first level.
            shared_PD: likewise for the shared experts.
        """
        shared = [expert(shared_PD) for expert in self.shared]
        specific = {
            task: [expert(own[task]) for expert in experts]  # type: ignore[attr-defined]  # a ModuleList
            for task, experts in self.specific.items()
        }
        extracted = {
            task: gate(own[task], torch.stack([*specific[task], *shared], dim=1))
            for task, gate in self.gates.items()
        }
        if self.shared_gate is None:
            return extracted, shared_PD
        every = [output for outputs in specific.values() for output in outputs]
        return extracted, self.shared_gate(shared_PD, torch.stack([*every, *shared], dim=1))


def build_experts(
    config: Experts, *, input_dim: int, tasks: Sequence[str]
) -> SharedBottom | MMoE | PLE:
    """Build what a configuration asks for; weights from torch's RNG."""
    match config.kind:
        case "shared_bottom":
            return SharedBottom(
                input_dim=input_dim, hidden=config.hidden, tasks=tasks, dropout=config.dropout
            )
        case "mmoe":
            return MMoE(
                input_dim=input_dim,
                num_experts=config.num_experts,
                hidden=config.hidden,
                tasks=tasks,
                dropout=config.dropout,
            )
        case "ple":
            return PLE(
                input_dim=input_dim,
                num_shared=config.num_shared,
                num_specific=config.num_specific,
                num_levels=config.num_levels,
                hidden=config.hidden,
                tasks=tasks,
                dropout=config.dropout,
            )
