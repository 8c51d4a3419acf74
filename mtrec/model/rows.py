"""What is known of users and of the moment, as the tensors that the network reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mtrec.model.ranking import Context
from mtrec.model.sizes import ModelSizes
from mtrec.model.towers import FeatureInputs
from mtrec.userstore import UserRows


@dataclass(frozen=True, slots=True)
class PairContext:
    """What is known when recommendations are asked for, R rows of users or pairs, as in the source.

    Attributes:
        numbers: context column -> (R,) values; NaN where missing.
        categories: context column -> (R,) int32 vocabulary positions; 0 where missing.
    """

    numbers: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    categories: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)


def user_inputs(
    users: UserRows, rows: NDArray[np.int64], sizes: ModelSizes, device: str
) -> FeatureInputs:
    """Give what the user tower reads of some rows of users."""
    features = users.features
    width = sizes.users.text_width
    text = users.text[rows]
    if text.shape[1] != width:
        assert not users.has_text.any(), "text vectors of another width than the model's"
        text = np.zeros((len(rows), width), np.float32)

    def tensor(values: NDArray[np.generic], dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype)).to(device)

    return FeatureInputs(
        numbers=tensor(features.numbers[rows], np.float32),
        categories={
            name: tensor(values[rows], np.int64) for name, values in features.categories.items()
        },
        multi={name: tensor(values[rows], np.int64) for name, values in features.multi.items()},
        text=tensor(text, np.float32),
        has_text=tensor(users.has_text[rows], np.float32),
    )


def context_inputs(
    context: PairContext,
    part: slice,
    sizes: ModelSizes,
    scaling: Mapping[str, tuple[float, float]],
    device: str,
) -> Context:
    """Give what the ranking network reads of the rows `part` of a context.

    Args:
        context: R rows.
        part: which of them.
        sizes: name the columns.
        scaling: number column -> offset and scale, as in training.
        device: where the tensors shall be.
    """
    count = part.stop - part.start
    numbers = np.zeros((count, len(sizes.context_numbers)), np.float32)
    present = np.zeros_like(numbers)
    for column, name in enumerate(sizes.context_numbers):
        if name in context.numbers:
            offset, scale = scaling[name]
            raw = np.asarray(context.numbers[name][part], np.float32)
            is_given = np.isfinite(raw)
            numbers[:, column] = np.where(is_given, (raw - offset) / scale, 0.0)
            present[:, column] = is_given
    categories = {
        name: np.asarray(context.categories[name][part], np.int64)
        if name in context.categories
        else np.zeros(count, np.int64)
        for name in sizes.context_categories
    }
    return Context(
        torch.from_numpy(numbers).to(device),
        torch.from_numpy(present).to(device),
        {name: torch.from_numpy(v).to(device) for name, v in categories.items()},
    )
