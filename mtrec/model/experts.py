"""What the ranking tasks share below their heads: one signature, (P, D) in, (P, H) a task out.

Shape letters: P pairs of a user and an item, D input width, H output width.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class SharedBottom(nn.Module):
    """One stack of layers that every task reads (Caruana 1997)."""

    def __init__(
        self, *, input_dim: int, hidden: Sequence[int], tasks: Sequence[str], dropout: float
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.output_dim = hidden[-1]
        layers: list[nn.Module] = []
        for width_in, width_out in zip([input_dim, *hidden], hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs_PD: Tensor) -> dict[str, Tensor]:
        """Give each task the same representation (P, H)."""
        shared_PH = self.layers(inputs_PD)
        return dict.fromkeys(self.tasks, shared_PH)
