"""CSV lines as records: which lines belong together, into which fields they fall, what is broken.

Follows RFC 4180 with three additions: any character may be the delimiter; a record that cannot be
split costs its first line only, with the reason, after which splitting goes on with the next line;
and a quote that swallowed other rows before it met one that closes it counts as never closed. Lines
without a quote, nearly all of them, are split column-wise by Arrow. Reads no files.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_RECORD_BYTES = 1 << 20
"""A quoted field that is still open after so many characters was never meant to be."""

_NOT_CLOSED = "row has a quote that is not closed"
_GARBAGE = "row has text after a closing quote"
_FIGURE = re.compile(r"\s*[+-]?\.?[0-9][-+.:eETZ0-9 ]*")
_INSIDE = re.compile(r'[^"]*(?:""[^"]*)*')


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
    """Splits lines into records and records into columns.

    Args:
        delimiter: what stands between two fields.
        num_fields: how many fields a record should have; None where that is not known yet.
        one_line: positions of fields in which a line end has no place: ids, numbers, times.
        figures: those of them that hold numbers and times.
    """

    def __init__(
        self,
        delimiter: str,
        *,
        num_fields: int | None = None,
        one_line: Collection[int] = (),
        figures: Collection[int] = (),
    ) -> None:
        self._delimiter = delimiter
        self._num_fields = num_fields
        self._one_line = one_line
        self._figures = figures
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
        first = lines[start].rstrip("\r\n")
        fields, open_field, size = list[str](), list[str](), 0
        for number in range(start, len(lines)):
            state = self._scan(lines[number], fields, open_field)
            size += len(lines[number])
            if state == "garbage":
                return first, None, _GARBAGE if number == start else _NOT_CLOSED, 1
            if state == "whole" and number == start:
                return first, fields, None, 1
            if state == "whole":
                if self._swallows(fields, lines[start + 1 : number]):
                    return first, None, _NOT_CLOSED, 1
                text = "".join(lines[start : number + 1]).rstrip("\r\n")
                return text, fields, None, number + 1 - start
            # The second bound keeps lines that each close a field and open another from making one
            # record after the other of a whole megabyte.
            if size > MAX_RECORD_BYTES or len(fields) > 2 * (self._num_fields or size):
                return first, None, _NOT_CLOSED, 1
        return None

    def _swallows(self, fields: Sequence[str], inner: Sequence[str]) -> bool:
        """Tell whether a record of several lines has rows inside it that are no part of it.

        Inside is what lies between the line that opens it and the one that closes it. In a record
        that fits, text may look like a row by chance, but not with figures in the right places.
        """
        if self._num_fields is None:
            return False
        rows = [row for line in inner if (row := self._row(line)) is not None]
        fits = len(fields) == self._num_fields and not any(
            "\n" in fields[position] or "\r" in fields[position] for position in self._one_line
        )
        if not fits:
            return bool(rows)
        return bool(self._figures) and any(
            all(_FIGURE.fullmatch(row[position]) for position in self._figures) for row in rows
        )

    def _row(self, line: str) -> list[str] | None:
        """Give the fields of a line that is a row by itself."""
        fields = list[str]()
        whole = self._scan(line, fields, []) == "whole"
        return fields if whole and len(fields) == self._num_fields and fields != [""] else None

    def _scan(
        self, line: str, fields: list[str], open_field: list[str]
    ) -> Literal["whole", "open", "garbage"]:
        """Read one more line of a record; each line is looked at once.

        Args:
            line: the line with its end.
            fields: gets the fields that end on the line.
            open_field: the lines so far of a quoted field that is open, empty where none is.
        """
        body, place = line.rstrip("\r\n"), 0
        if open_field:
            end = _inside(line, 0)
            open_field.append(line[:end])
            if end == len(line):
                return "open"
            fields.append("".join(open_field).replace('""', '"'))
            open_field.clear()
            if end + 1 == len(body):
                return "whole"
            if body[end + 1] != self._delimiter:
                return "garbage"
            place = end + 2
        while True:
            match = self._field.match(body, place)
            if match is None:
                end = _inside(line, place + 1)
                if end < len(line):
                    return "garbage"
                open_field.append(line[place + 1 :])
                return "open"
            quoted, plain, delimiter = match.groups()
            fields.append(quoted.replace('""', '"') if quoted is not None else plain or "")
            place = match.end()
            if not delimiter:
                return "whole"


def _inside(line: str, start: int) -> int:
    """Give where the text of a quoted field ends: at its closing quote, or at the line's end."""
    match = _INSIDE.match(line, start)
    assert match is not None, "the pattern matches the empty text"
    return match.end()
