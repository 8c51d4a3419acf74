"""Label expressions and text templates, as a configuration writes them. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_OPERATORS = {
    ">=": np.greater_equal,
    ">": np.greater,
    "<=": np.less_equal,
    "<": np.less,
    "==": np.equal,
    "!=": np.not_equal,
}


@dataclass(frozen=True, slots=True)
class LabelExpression:
    """A column, or a column compared with a number: `rating`, `rating >= 4`.

    Attributes:
        column: its name.
        operator: one of >= > <= < == !=; None: the column itself.
        value: what it is compared with.
    """

    column: str
    operator: str | None = None
    value: float = 0.0


_LABEL = re.compile(
    r"^\s*(?P<column>[a-z][a-z0-9_]*)\s*"
    r"(?:(?P<operator>>=|<=|==|!=|>|<)\s*(?P<value>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?))?\s*$"
)


def parse_label(text: str) -> LabelExpression:
    """Parse a label expression.

    >>> parse_label("rating >= 4").value
    4.0

    Raises:
        ValueError: the text is neither a column nor `column OPERATOR number`.
    """
    match = _LABEL.match(text)
    if match is None:
        raise ValueError(
            f'"{text}" is no label: expected a column or a comparison such as "rating >= 4"'
        )
    return LabelExpression(
        column=match["column"],
        operator=match["operator"],
        value=float(match["value"] or 0.0),
    )


def label_values(label: str, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """Evaluate a label expression over events.

    Args:
        label: `rating`, `rating >= 4`.
        columns: number column -> (E,) float64 as in the source, NaN where missing.

    Returns:
        (E,) float32: the column's values, or 1 and 0 for a comparison; NaN where missing.
    """
    expression = parse_label(label)
    values = columns[expression.column]
    if expression.operator is None:
        return values.astype(np.float32)
    holds = _OPERATORS[expression.operator](values, expression.value)
    return np.where(np.isnan(values), np.nan, holds).astype(np.float32)


def template_fields(template: str) -> list[str]:
    """List the columns that a text template names.

    >>> template_fields("{title} ({year})")
    ['title', 'year']
    """
    return re.findall(r"{([^{}]*)}", template)
