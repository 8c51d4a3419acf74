"""Label expressions and text templates, as a configuration writes them. Pure."""

import re
from dataclasses import dataclass


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


def template_fields(template: str) -> list[str]:
    """List the columns that a text template names.

    >>> template_fields("{title} ({year})")
    ['title', 'year']
    """
    return re.findall(r"{([^{}]*)}", template)
