"""From candidates to the list: blended score, filters over item columns, diversity.

Used by `Recommender` alone, after retrieval and ranking. Pure NumPy over arrays of candidates; it
never sees users, vectors of users, or files. What a request says wrongly is a `RequestError`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.dataconfig import Column
from mtrec.errors import RequestError
from mtrec.modelconfig import RegressionTask, Task
from mtrec.query import clip, read_id, show

# Bounds the memory of a pass over vectors that may be memory-mapped.
_BLOCK_BYTES = 64 << 20


def retrieval_unit(
    logit: NDArray[np.float64], max_logit: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Map retrieval logits to [0, 1]: exp(z - z_max), 1 for what lies above z_max.

    Args:
        logit: any shape; NaN stays NaN.
        max_logit: broadcast to `logit`; the user's largest logit.
    """
    result: NDArray[np.float64] = np.exp(np.minimum(logit - max_logit, 0.0))
    return result


def prediction_unit(task: Task, prediction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map a ranking task's prediction to [0, 1]: (value - min) / (max - min), or a probability."""
    value = np.asarray(prediction, np.float64)
    if isinstance(task, RegressionTask):
        value = (value - task.min) / (task.max - task.min)
    return np.clip(value, 0.0, 1.0)


def blend(
    units: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]
) -> NDArray[np.float64]:
    """Give the mean of the tasks' numbers in [0, 1], weighted: sum(w_t x_t) / sum(w_t).

    Args:
        units: task -> numbers in [0, 1]; every task with a weight above 0 must be there.
        weights: task -> weight; at least one is above 0.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0.0}
    assert used, "some weight must be above 0"
    largest = max(used.values())  # the sum of huge weights must not overflow
    total = sum(weight / largest for weight in used.values())
    score = sum(units[name] * (weight / largest / total) for name, weight in used.items())
    return np.clip(np.asarray(score, np.float64), 0.0, 1.0)


def diversify(
    score: NDArray[np.float64], vectors: NDArray[np.float32], k: int, *, diversity: float
) -> NDArray[np.int64]:
    """Choose k of C candidates by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each step takes the candidate with the largest
    (1 - diversity) r_i - diversity max_{j taken} cos(i, j); the maximum over nothing is 0. The
    relevance r_i is log score_i, from 0 for the least of the candidates to 1 for the best: scores
    are exponentials of logits, so most of them are next to 0, and as they are the dial would weigh
    a handful of items and let likeness alone choose the rest. A score of 0 has relevance 0.

    Args:
        score: (C,) in [0, 1], best first; of equal values the first is taken.
        vectors: (C, D) content vectors, of any length; zeros resemble nothing.
        k: how many to choose, at most C are.
        diversity: 0 takes the best scores, 1 looks at the vectors alone.

    Returns:
        (min(k, C),) positions of the chosen in the order in which they were chosen.
    """
    unit = unit_rows(vectors)
    open_value = (1.0 - diversity) * _relevance(score)
    nearest = np.full(len(score), -np.inf)
    chosen: list[int] = []
    for _ in range(min(k, len(score))):
        penalty = nearest if chosen else np.zeros(len(score))
        best = int(np.argmax(open_value - diversity * penalty))
        chosen.append(best)
        nearest = np.maximum(nearest, unit @ unit[best])
        open_value = open_value.copy()
        open_value[best] = -np.inf
    return np.array(chosen, np.int64)


def _relevance(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale the logarithms of (C,) scores to [0, 1]; equal ones are all 1."""
    is_positive = score > 0.0
    logs = np.log(score, where=is_positive, out=np.zeros(len(score)))
    low = logs.min(where=is_positive, initial=0.0)
    high = logs.max(where=is_positive, initial=-np.inf)
    scaled = (logs - low) / (high - low) if high > low else np.ones(len(score))
    return np.where(is_positive, scaled, 0.0)


def unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale rows to length 1; rows of zeros stay."""
    wide = np.asarray(vectors, np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norm > 0.0, norm, 1.0)


def cosines(vectors: NDArray[np.floating], query: NDArray[np.floating]) -> NDArray[np.float64]:
    """Give the cosine of every row with one vector: (N,); NaN for a row or a query of zeros."""
    result = np.full(len(vectors), np.nan)
    length = float(np.linalg.norm(query.astype(np.float64)))
    if length == 0.0:
        return result
    unit = query.astype(np.float64) / length
    rows = max(1, _BLOCK_BYTES // (8 * max(1, vectors.shape[1])))
    for at in range(0, len(vectors), rows):
        block = np.asarray(vectors[at : at + rows], np.float64)
        norm = np.linalg.norm(block, axis=1)
        # Not a matrix product: equal rows must give equal numbers, wherever they stand.
        dot = (block * unit).sum(axis=1)
        result[at : at + rows] = np.where(norm > 0.0, dot / np.where(norm > 0.0, norm, 1), np.nan)
    return result


@dataclass(frozen=True, slots=True)
class _Codes:
    """Values of a text-like column: entry e says that row `row[e]` has the value `code[e]`."""

    row: NDArray[np.int64]
    code: NDArray[np.int64]
    code_of: dict[str, int]


class ItemFilter:
    """Turn a request's `filter` into the catalogue positions that it allows.

    Args:
        items: rows of the catalogue, the first at position `first`.
        columns: the configured columns of the items table, by name.
        first: position of the first row; what lies before is never allowed.
    """

    def __init__(self, items: pa.Table, columns: Mapping[str, Column], *, first: int = 2) -> None:
        self._num_rows = items.num_rows + first
        self._numbers: dict[str, NDArray[np.float64]] = {}
        self._codes: dict[str, _Codes] = {}
        for name, column in columns.items():
            values = items.column(name).combine_chunks()
            if isinstance(values, pa.ChunkedArray):
                values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([])
            if column.kind == "number":
                numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
                self._numbers[name] = np.concatenate([np.full(first, np.nan), numbers])
            else:
                self._codes[name] = _encode(values, first)

    @property
    def columns(self) -> list[str]:
        """The columns that a filter may name."""
        return sorted([*self._numbers, *self._codes])

    def allowed(self, conditions: object) -> NDArray[np.bool_]:
        """Give the positions that meet all conditions: (N,) bool.

        Args:
            conditions: `{column: value | [values] | {"min": x, "max": y}}`; a column with several
                values an item meets it if any does; an item without a value never meets it.

        Raises:
            RequestError: a column or a value is not what the catalogue has.
        """
        if not isinstance(conditions, Mapping):
            raise _refuse("filter", "expected an object {column: condition}", conditions)
        allowed = np.ones(self._num_rows, bool)
        for name, condition in conditions.items():
            field = f"filter.{clip(name)}"
            if name in self._numbers:
                allowed &= _meet_number(self._numbers[name], condition, field)
            elif name in self._codes:
                allowed &= self._meet_code(self._codes[name], condition, field)
            else:
                raise RequestError(
                    f"filter: items have no column {show(name)}; there are {self.columns}",
                    code="unknown_column",
                    field=field,
                )
        return allowed

    def _meet_code(self, column: _Codes, condition: object, field: str) -> NDArray[np.bool_]:
        if isinstance(condition, Mapping):
            raise _refuse(field, "expected a value or a list: only numbers have a range", condition)
        wanted = []
        for value in condition if isinstance(condition, list | tuple) else [condition]:
            code = column.code_of.get(read_id(value, field, empty=True))
            if code is not None:
                wanted.append(code)
        met = np.zeros(self._num_rows, bool)
        met[column.row[np.isin(column.code, wanted)]] = True
        return met


def _encode(values: pa.Array, first: int) -> _Codes:
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        row = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(values)
    else:
        row = np.arange(len(values))
    coded = pc.dictionary_encode(values.cast(pa.string()))
    present = np.asarray(coded.is_valid())
    code = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return _Codes(
        row=row[present].astype(np.int64) + first,
        code=code[present].astype(np.int64),
        code_of={value: at for at, value in enumerate(coded.dictionary.to_pylist())},
    )


def _meet_number(values: NDArray[np.float64], condition: object, field: str) -> NDArray[np.bool_]:
    if isinstance(condition, Mapping):
        if not condition or set(condition) - {"min", "max"}:
            raise _refuse(field, "expected a range with min, max or both", condition)
        low = _number(condition["min"], f"{field}.min") if "min" in condition else -math.inf
        high = _number(condition["max"], f"{field}.max") if "max" in condition else math.inf
        return np.asarray((values >= low) & (values <= high))
    several: Sequence[object] = condition if isinstance(condition, list | tuple) else [condition]
    return np.isin(values, [_number(value, field) for value in several])


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(field, "expected a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _refuse(field, "expected a finite number", value)
    return number


def _refuse(field: str, expected: str, found: object) -> RequestError:
    return RequestError(f"{field}: {expected}, found {show(found)}", field=field)
