"""CSV lines as records: which lines belong together, into which fields they fall, what is broken.

Follows RFC 4180 with two additions: any character may be the delimiter, and a record that cannot be
split costs its first line only, with the reason, after which splitting goes on with the next line.
Lines without a quote, nearly all of them, are split column-wise by Arrow. Reads no files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_RECORD_BYTES = 1 << 20
"""A quoted field that is still open after so many characters was never meant to be."""

_NOT_CLOSED = "row has a quote that is not closed"
_GARBAGE = "row has text after a closing quote"
_CLOSED_FIELD = re.compile(r'"[^"]*(?:""[^"]*)*"(?!")')


@dataclass(frozen=True, slots=True)
class Records:
    """CSV records by number.

    Attributes:
        texts: text of each record, without its line end.
        fields: the fields of records that have quotes; the others are split at every delimiter.
        reasons: what is wrong with those that cannot be split.
    """

    texts: list[str]
    fields: dict[int, list[str]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def without_first(self) -> "Records":
        """Leave out the first record, the header."""
        return Records(
            self.texts[1:],
            {n - 1: fields for n, fields in self.fields.items() if n},
            {n - 1: reason for n, reason in self.reasons.items() if n},
        )


class Splitter:
    """Splits lines into records and records into columns, for one delimiter."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        other = re.escape(delimiter)
        self._field = re.compile(
            rf'(?:"([^"]*(?:""[^"]*)*)"|([^"{other}][^{other}]*)?)({other}|\Z)', re.DOTALL
        )

    def split(
        self, lines: Sequence[str], reasons: Mapping[int, str], *, last: bool
    ) -> tuple[Records, int]:
        """Give the records of lines, blank lines left out, and the number of lines they use.

        Args:
            lines: whole lines with their ends.
            reasons: line number -> what is already known to be wrong with it.
            last: no line follows these; else a record that is open at the end is left for later.
        """
        if not reasons and not any('"' in line for line in lines):
            texts = [line.rstrip("\r\n") for line in lines]
            return Records([text for text in texts if text] if "" in texts else texts), len(lines)
        records = Records([])
        number = 0
        while number < len(lines):
            text, used = lines[number].rstrip("\r\n"), 1
            fields: list[str] | None = None
            reason = reasons.get(number)
            if reason is None and '"' in text:
                found = self._quoted(lines, number)
                if found is None and not last:
                    break
                text, fields, reason, used = found or (text, None, _NOT_CLOSED, 1)
                inner = [n for n in range(number, number + used) if n in reasons]
                if inner:
                    fields, reason = None, reasons[inner[0]]
            number += used
            if not text:
                continue
            if fields is not None:
                records.fields[len(records.texts)] = fields
            if reason is not None:
                records.reasons[len(records.texts)] = reason
            records.texts.append(text)
        return records, number

    def header(self, records: Records) -> list[str]:
        """Give the fields of the first record."""
        return records.fields.get(0) or records.texts[0].split(self._delimiter)

    def columns(
        self, records: Records, header: Sequence[str], wanted: Mapping[str, int]
    ) -> tuple[dict[str, pa.Array], list[str | None]]:
        """Put the fields of N records into columns.

        Args:
            records: the records.
            header: the file's columns; a record must have as many fields, and not be these.
            wanted: name -> position in the header.

        Returns:
            Name -> (N,) string, null where a record has a reason; and the reasons (N,).
        """
        rows, count = len(records.texts), len(header)
        reasons: list[str | None] = [None] * rows
        for number, reason in records.reasons.items():
            reasons[number] = reason
        wrong = f"wrong number of fields, expected {count}"
        texts = pa.array(records.texts, pa.string())
        plain = np.ones(rows, bool)
        plain[[*records.fields, *records.reasons]] = False
        plain_rows = np.flatnonzero(plain)
        lists = pc.split_pattern(texts.filter(pa.array(plain)), self._delimiter)
        lengths = np.asarray(pc.list_value_length(lists))
        for number in plain_rows[lengths != count].tolist():
            reasons[number] = wrong
        for number, fields in records.fields.items():
            if len(fields) != count:
                reasons[number] = wrong
            elif fields == list(header):
                reasons[number] = "repeats the header"
        again = np.asarray(pc.equal(texts, self._delimiter.join(header)))
        for number in np.flatnonzero(again & plain).tolist():
            reasons[number] = "repeats the header"
        flat = lists.filter(pa.array(lengths == count)).flatten()
        good_plain = plain_rows[lengths == count]
        good_quoted = [n for n in records.fields if reasons[n] is None]
        place = np.full(rows, -1, np.int64)
        place[good_plain] = np.arange(len(good_plain))
        place[good_quoted] = len(good_plain) + np.arange(len(good_quoted))
        take = pa.array(place, mask=place < 0)
        columns: dict[str, pa.Array] = {}
        for name, position in wanted.items():
            from_plain = flat.take(pa.array(np.arange(len(good_plain)) * count + position))
            quoted = [records.fields[n][position] for n in good_quoted]
            both = pa.concat_arrays([from_plain, pa.array(quoted, pa.string())])
            columns[name] = both.take(take)
        return columns, reasons

    def _quoted(
        self, lines: Sequence[str], start: int
    ) -> tuple[str, list[str] | None, str | None, int] | None:
        """Parse a record that starts on a line with a quote: (text, fields, reason, lines used).

        None: the lines end within the record.
        """
        first = text = lines[start]
        for stop in range(start + 1, len(lines) + 1):
            # Only a line with a quote can close the field.
            if stop == start + 1 or '"' in lines[stop - 1]:
                fields = self._fields(text.rstrip("\r\n"))
                if isinstance(fields, list):
                    return text.rstrip("\r\n"), fields, None, stop - start
                if fields == "garbage":
                    reason = _GARBAGE if stop == start + 1 else _NOT_CLOSED
                    return first.rstrip("\r\n"), None, reason, 1
            if len(text) > MAX_RECORD_BYTES:
                return first.rstrip("\r\n"), None, _NOT_CLOSED, 1
            if stop < len(lines):
                text += lines[stop]
        return None

    def _fields(self, text: str) -> list[str] | Literal["open", "garbage"]:
        """Split one record; tell when a quote is open at its end or closed too early."""
        fields, place = list[str](), 0
        while True:
            match = self._field.match(text, place)
            if match is None:
                return "garbage" if _CLOSED_FIELD.match(text, place) else "open"
            quoted, plain, end = match.groups()
            fields.append(quoted.replace('""', '"') if quoted is not None else plain or "")
            place = match.end()
            if not end:
                return fields
