"""Text of an item or a user, made from a template and one row's columns.

Pure and tiny: `prepare` renders with it, requests and added items are rendered with it too, so the
same row gives the same text everywhere. It never looks at anything but the row.
"""

import math
import re
from collections.abc import Mapping

import pyarrow as pa

_FIELD = re.compile(r"{([^{}]*)}")
# Stands for a missing value until brackets and separators around it are gone; no text contains it,
# because ids and texts with NUL are refused on the way in.
_ABSENT = "\0"
_EMPTY_BRACKETS = re.compile(r"[(\[]\s*\0\s*[)\]]")
_SEPARATOR_BEFORE = re.compile(r"\s*[|;,]\s*\0")
_LEADING_SEPARATOR = re.compile(r"^[\s\0]*\0\s*[|;,]\s*")


def render_template(template: str, row: Mapping[str, object]) -> str:
    """Fill the columns of one row into a template such as `{title} ({year}) | {genres}`.

    Lists are joined with `, `; whole numbers lose their `.0`. A missing value (None, empty text,
    empty list, absent column) vanishes together with brackets that hold nothing else and with the
    `|`, `;` or `,` before it. Runs of white space become one space.

    >>> render_template("{title} ({year}) | {genres}", {"title": "Up", "genres": ["Drama", "Air"]})
    'Up | Drama, Air'
    """
    text = _FIELD.sub(lambda match: _value(row.get(match[1])), template)
    if _ABSENT in text:
        text = _EMPTY_BRACKETS.sub(_ABSENT, text)
        text = _LEADING_SEPARATOR.sub("", text)
        text = _SEPARATOR_BEFORE.sub("", text)
        text = text.replace(_ABSENT, "")
    return " ".join(text.split())


def render_rows(table: pa.Table, template: str | None) -> pa.Array:
    """Render each row's text from what is told of it; null where nothing is."""
    if template is None:
        return pa.nulls(table.num_rows, pa.string())
    texts = [render_template(template, row) or None for row in table.to_pylist()]
    return pa.array(texts, pa.string())


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        parts = [_value(part) for part in value]
        return ", ".join(part for part in parts if part != _ABSENT) or _ABSENT
    if isinstance(value, float):
        # Not a number is how NumPy says missing.
        return _ABSENT if math.isnan(value) else f"{value:.15g}"
    return (str(value).replace(_ABSENT, "") if value is not None else "") or _ABSENT
