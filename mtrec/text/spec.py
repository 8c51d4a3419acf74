"""What is said about a text encoder and about texts, without loading any encoder.

Shared by the encoders, the store and the driver of `embed`. Holds values only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REVISION = 1
"""Part of every encoder's id; to be raised when the same model would give other vectors."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Which encoder it is, known without loading it.

    Attributes:
        id: hash of weights, tokenizer files, pooling, max_tokens and precision; vectors of equal
            ids may stand beside each other.
        model_id: the same without the precision; vectors of equal model ids agree to rounding.
        name: as configured.
        dim: width of a vector.
        pooling: `mean`, `cls` or `last`; `none` for the hashing encoder.
        precision: `float32` or `bfloat16`, of the arithmetic; vectors are always float32.
        weights_bytes: size of the weights on disk.
    """

    id: str
    model_id: str
    name: str
    dim: int
    pooling: str
    precision: str
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How many tokens each text has, and how many of them the encoder does not know.

    Attributes:
        total: (N,) int32, without the tokens that the tokenizer adds.
        unknown: (N,) int32.
    """

    total: NDArray[np.int32]
    unknown: NDArray[np.int32]

    @property
    def unknown_fraction(self) -> float:
        """The share of all tokens that are unknown, 0 to 1; 0 if there are no tokens."""
        total = int(self.total.sum())
        return int(self.unknown.sum()) / total if total else 0.0
