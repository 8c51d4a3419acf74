"""Dropout whose masks do not depend on how a batch is cut over workers, nor on what ran before.

torch draws masks from one stream a process: two workers that share a batch, or one that goes on
from a checkpoint with another number of workers, drop other elements than one worker would have.
Here a hash of the seed, the step, the layer, the row's number in the global batch and the element's
place in the row decides, so that a run is the same run however it is cut or interrupted.

Shape letters: R rows of a batch.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# The finaliser of splitmix64 (Steele, Lea and Flood 2014) in signed 64-bit arithmetic.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
# One hash of 64 bits decides four elements: a probability is rounded to 1 / 65,536.
_BITS = 16


@dataclass(slots=True)
class Noise:
    """What the layers of one network have in common; set before each forward pass in training.

    Attributes:
        seed: of the run.
        step: of the optimizer.
        rows: (R,) int64, number of each row of the inputs, the same on whatever worker it is.
    """

    seed: int = 0
    step: int = 0
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


class Dropout(nn.Module):
    """Set elements of (R, ...) to zero with probability p and divide the others by 1 - p.

    Identity in evaluation. `bind_noise` gives every layer of a network its number.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.noise = Noise()
        self.layer = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop elements; the leading dimension must be that of `noise.rows`.

        Raises:
            AssertionError: there are other rows than the noise names.
        """
        if not self.training or self.p == 0.0 or inputs.numel() == 0:
            return inputs
        rows = self.noise.rows.to(inputs.device)
        assert len(rows) == len(inputs), f"{len(inputs)} rows, but {len(rows)} are named"
        start = _mix(_mix(_mix(rows * 0 + self.noise.seed) + self.noise.step) + self.layer)
        width = inputs[0].numel()
        place = torch.arange(-(-width * _BITS // 64), device=inputs.device)
        drawn = _mix(_mix(start + rows)[:, None] + place).view(torch.int16)[:, :width]
        kept = (drawn >= round(self.p * (1 << _BITS)) - (1 << (_BITS - 1))).view(inputs.shape)
        return inputs * (kept.to(inputs.dtype) / (1.0 - self.p))


def bind_noise(network: nn.Module) -> Noise:
    """Give all `Dropout` layers of a network one `Noise` and a number each, in their order."""
    noise = Noise()
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.noise, layer.layer = noise, number
    return noise


def _mix(state: Tensor) -> Tensor:
    """Hash int64 values element by element; arithmetic wraps around."""
    state = state + _GOLDEN
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, which torch does not offer for signed numbers."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
