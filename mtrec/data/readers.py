"""Files of CSV, JSONL and Parquet as batches of raw rows, none of them lost.

Every record becomes a row. One that cannot be decoded or split carries its reason, because a reader
that skips a broken row on its own account cannot say which one it was. Values stay text: casting is
`contract`'s. Streams file by file through `pyarrow.fs`; a batch is the same whatever the number of
workers.
"""

import codecs
import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mtrec import storage
from mtrec.data.casts import join_texts
from mtrec.data.contract import (
    INTEGER,
    PLACE,
    REASON,
    ROW,
    SOURCE,
    Table,
    id_columns,
)
from mtrec.data.contract import source_columns as _source_columns
from mtrec.data.records import Splitter
from mtrec.dataconfig import CategoriesColumn, NumberColumn, TextColumn
from mtrec.errors import ConfigError, DataError

Format = Literal["csv", "jsonl", "parquet"]

CHUNK_BYTES = 8 << 20
ROWS_PER_BATCH = 1 << 16
ROWS_PER_PIECE = 1 << 20
PLACES_PER_FILE = 1 << 40
LINES_FOR_KEYS = 1000
"""A JSONL key that none of the first so many rows has is taken for a wrong column name."""

_BOM = codecs.BOM_UTF8
_NOT_DECODED = "row does not decode as {}"
_NUL = "row holds a NUL byte"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one file that one task reads.

    Attributes:
        path: local path or URI, absolute.
        name: the path as the user wrote it, for `_source`.
        format: how to read it.
        file: position of the file in the input.
        header: the file's columns; JSONL: the keys of its first object.
        row_groups: Parquet: which ones.
        first_row: Parquet: number of the first row within the file.
    """

    path: str
    name: str
    format: Format
    file: int
    header: tuple[str, ...] = ()
    row_groups: tuple[int, ...] = ()
    first_row: int = 0


def input_files(config: Table, root: str) -> list[tuple[str, str, int, float]]:
    """List a table's files as (absolute path, name to show, bytes, time of change), sorted.

    Raises:
        DataError: nothing is there.
    """
    name = config.path
    absolute = "://" in name or name.startswith("/")
    full = name if absolute or root in ("", ".") else storage.join(root, name)
    prefix = full.split("://")[0] + "://" if "://" in full else ""  # for what is shown
    with explained(full):
        infos, pattern = _find_files(full)
    if not infos:
        what = "matches no file" if pattern else "is not there, or holds no file"
        raise DataError(
            f"input {full} {what}\n"
            "check data.*.path; relative paths start in data.root, else in the current folder"
        )
    base_name = full if pattern or len(infos) > 1 else name
    return sorted(
        (
            storage.beside(full, i.path),
            base_name if len(infos) == 1 else prefix + i.path,
            i.size,
            i.mtime_ns,
        )
        for i in infos
    )


def plan(config: Table, root: str) -> list[Piece]:
    """Cut a table's files into pieces and check that each file has the columns that are asked for.

    Raises:
        DataError: a file is missing, empty, unreadable or lacks a column; all are named at once.
        ConfigError: the declared encoding is unknown.
    """
    try:
        codecs.lookup(config.encoding)
    except LookupError:
        raise ConfigError(
            f'encoding "{config.encoding}" of {config.path} is unknown\n'
            "expected a name that Python knows, such as utf-8, latin-1, gb18030"
        ) from None
    pieces: list[Piece] = []
    for number, (path, name, _, _) in enumerate(input_files(config, root)):
        kind = _format(path, config.format)
        piece = Piece(path, name, kind, number)
        with explained(f"{name} as {kind}"):
            pieces += _plan_file(piece, config)
    return pieces


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what reading input raises in the body into an error with the remedy.

    Raises:
        DataError: in the place of what Arrow and the storage raise.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        remedy = "check the file, or name its format in data.*.format"
        if isinstance(error, PermissionError):
            remedy = "let the user that runs mtrec read it, on every node"
        elif storage.is_remote_failure(error):
            remedy = "look at the network, the endpoint and the credentials (AWS_* variables)"
        told = " ".join(str(error).split())
        raise DataError(f"cannot read {what}: {told}\n{remedy}") from error


def _plan_file(piece: Piece, config: Table) -> list[Piece]:
    match piece.format:
        case "csv":
            header = _header(piece, config)
            _require(config, piece.name, header)
            return [replace(piece, header=tuple(header))]
        case "jsonl":
            found = _first_keys(piece, config)
            if found is not None:
                _require(config, piece.name, found)
            return [replace(piece, header=tuple(found or ()))]
        case "parquet":
            return _plan_parquet(piece, config)


def read(piece: Piece, config: Table) -> Iterator[pa.Table]:
    """Read a piece as raw tables for `contract.check`, in the order of the file.

    Raises:
        DataError: the file cannot be read to its end.
    """
    with explained(f"{piece.name} as {piece.format}"):
        match piece.format:
            case "csv":
                yield from _read_csv(piece, config)
            case "jsonl":
                yield from _read_jsonl(piece, config)
            case "parquet":
                yield from _read_parquet(piece, config)


# ---- lines --------------------------------------------------------------------------------------


def _line_chunks(piece: Piece, encoding: str) -> Iterator[tuple[list[bytes], bool]]:
    """Yield whole lines with their ends, and whether they are the last.

    A byte order mark at a line's start is taken off: files that were put together have several.
    """
    decoder = _transcoder(encoding)
    carry = b""
    with _open(piece) as stream:
        while True:
            data = stream.read(CHUNK_BYTES)
            last = not data
            if decoder is not None:
                data = decoder.decode(data, last).encode("utf-8")
            data = carry + data
            # A carriage return at the very end may be the first half of a line end.
            cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            if last:
                cut = len(data)
            carry = data[cut:]
            lines = data[:cut].splitlines(keepends=True)
            yield [line.removeprefix(_BOM) for line in lines] if _BOM in data else lines, last
            if last:
                return


def _transcoder(encoding: str) -> codecs.IncrementalDecoder | None:
    """Give a decoder for encodings in which a byte of 10 need not be a line end."""
    name = codecs.lookup(encoding).name
    if not name.startswith(("utf-16", "utf-32")):
        return None
    return codecs.getincrementaldecoder(name)("replace")


def _decode(lines: list[bytes], encoding: str) -> tuple[list[str], dict[int, str]]:
    """Decode lines; a line that cannot be gets its bytes escaped and a reason."""
    wide = _transcoder(encoding) is not None
    name = "utf-8" if wide else encoding
    reasons: dict[int, str] = {}
    try:
        texts = [line.decode(name) for line in lines]
    except UnicodeDecodeError:
        texts = []
        for number, line in enumerate(lines):
            try:
                texts.append(line.decode(name))
            except UnicodeDecodeError:
                texts.append(line.decode(name, "backslashreplace"))
                reasons[number] = _NOT_DECODED.format(encoding)
    signs = {"\0": _NUL} | ({"\ufffd": _NOT_DECODED.format(encoding)} if wide else {})
    for sign, reason in signs.items():
        for number, text in enumerate(texts):
            if sign in text:
                reasons.setdefault(number, reason)
    return texts, reasons


# ---- CSV ----------------------------------------------------------------------------------------


def _read_csv(piece: Piece, config: Table) -> Iterator[pa.Table]:
    wanted = {name: piece.header.index(source) for name, source in _source_columns(config).items()}
    figures = [
        position
        for name, position in wanted.items()
        if name == "timestamp" or (name in config.columns and config.columns[name].kind == "number")
    ]
    ids = [wanted[name] for name in id_columns(config)]
    splitter = Splitter(
        config.delimiter,
        num_fields=len(piece.header),
        one_line=[*ids, *figures],
        figures=figures,
    )
    row, header_seen, pending = 0, False, list[bytes]()
    for chunk, last in _line_chunks(piece, config.encoding):
        lines = pending + chunk
        records, used = splitter.split(*_decode(lines, config.encoding), last=last)
        pending = lines[used:]
        if not header_seen and records.texts:
            records, header_seen = records.without_first(), True
        if records.texts:
            columns, reasons = splitter.columns(records, piece.header, wanted)
            yield _table(columns, piece, row, pa.array(records.texts, pa.string()), reasons)
            row += len(records.texts)


def _header(piece: Piece, config: Table) -> list[str]:
    splitter = Splitter(config.delimiter)
    for lines, last in _line_chunks(piece, config.encoding):
        records, _ = splitter.split(*_decode(lines, config.encoding), last=last)
        if 0 in records.reasons:
            raise DataError(
                f"{piece.name}: the header {records.reasons[0].removeprefix('row ')}\n"
                "expected column names in the first line; see data.*.encoding, delimiter"
            )
        if records.texts:
            return splitter.header(records)
    raise DataError(f"{piece.name} is empty\nexpected column names in the first line")


# ---- JSONL --------------------------------------------------------------------------------------


def _read_jsonl(piece: Piece, config: Table) -> Iterator[pa.Table]:
    names, row = _source_columns(config), 0
    for chunk, _ in _line_chunks(piece, config.encoding):
        texts, reasons = _decode(chunk, config.encoding)
        kept = [n for n, text in enumerate(texts) if text.strip()]
        lines = [texts[n].rstrip("\r\n") for n in kept]
        problems = [reasons.get(n) for n in kept]
        for start in range(0, len(lines), ROWS_PER_BATCH):
            part = slice(start, start + ROWS_PER_BATCH)
            yield _jsonl_table(lines[part], problems[part], piece, config, names, row)
            row += len(lines[part])


def _jsonl_table(
    lines: list[str],
    reasons: list[str | None],
    piece: Piece,
    config: Table,
    names: dict[str, str],
    row: int,
) -> pa.Table:
    values: dict[str, list[object]] = {name: [] for name in names}
    flags: dict[str, list[bool]] = {INTEGER + name: [] for name in id_columns(config)}
    for number, line in enumerate(lines):
        found: dict[str, Any] = {}
        if reasons[number] is None:
            found, reasons[number] = _parse_json(line)
        for name, source in names.items():
            value, integer, problem = _from_json(name, found.get(source), config)
            values[name].append(value)
            if name in id_columns(config):
                flags[INTEGER + name].append(integer)
            if problem is not None and reasons[number] is None:
                reasons[number] = f"{name} {problem}"
    kinds = {
        name: pa.list_(pa.string())
        if isinstance(config.columns.get(name), CategoriesColumn)
        else pa.string()
        for name in names
    }
    columns = {name: pa.array(column, kinds[name]) for name, column in values.items()}
    columns |= {name: pa.array(column, pa.bool_()) for name, column in flags.items()}
    return _table(columns, piece, row, pa.array(lines, pa.string()), reasons)


def _parse_json(line: str) -> tuple[dict[str, Any], str | None]:
    """Give the object of one line, or an empty one and what is wrong with the line."""
    try:
        tree = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        # The message of Python's parser for text behind a value that is whole.
        more = error.msg == "Extra data"
        return {}, "row has more after its JSON value" if more else "row is not JSON"
    except RecursionError:
        return {}, "row is JSON nested too deeply"
    except ValueError:
        # Python reads no integer of more than 4,300 digits.
        return {}, "row has a JSON number of thousands of digits"
    if isinstance(tree, _Repeated):
        return {}, "row has a JSON key twice"
    return (tree, None) if isinstance(tree, dict) else ({}, "row is no JSON object")


class _Repeated:
    """Stands for a JSON object with a key twice, of which one value would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    tree = dict(pairs)
    return tree if len(tree) == len(pairs) else _Repeated()


# One for all lines: `json.loads` with a hook makes a new one each time.
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _from_json(name: str, value: object, config: Table) -> tuple[object, bool, str | None]:
    """Write a JSON value as text: (text or list of texts, is it an integer, problem)."""
    column = config.columns.get(name)
    integer = isinstance(value, int) and not isinstance(value, bool)
    if value is None:
        return None, False, None
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            return None, False, "holds half of a surrogate pair"
        if isinstance(column, CategoriesColumn):
            return value.split(column.separator), False, None
        return value, False, None
    if isinstance(value, list) and isinstance(column, CategoriesColumn | TextColumn):
        parts = [_from_json("", part, config) for part in value]
        if any(isinstance(part, list | dict | _Repeated) for part in value):
            return None, False, "is a nested list"
        problem = next((part[2] for part in parts if part[2]), None)
        texts = [part[0] for part in parts if part[0] is not None]
        is_text = isinstance(column, TextColumn)
        return join_texts(map(str, texts)) if is_text else texts, False, problem
    if isinstance(value, _Repeated):
        return None, False, "has a JSON key twice"
    if isinstance(value, list | dict):
        return None, False, f"is a JSON {'list' if isinstance(value, list) else 'object'}"
    if (
        isinstance(value, float)
        and not math.isfinite(value)
        and not isinstance(column, NumberColumn)
    ):
        return None, False, "is not finite"
    if name in id_columns(config) and not integer:
        return None, False, "is a JSON number with a fraction or a Boolean"
    if isinstance(value, bool):
        text = str(int(value)) if isinstance(column, NumberColumn) else str(value).lower()
        return text, False, None
    if isinstance(value, float) and value.is_integer() and not isinstance(column, NumberColumn):
        return f"{value:.15g}", False, None
    wrapped = [str(value)] if isinstance(column, CategoriesColumn) else str(value)
    return wrapped, integer, None


def _first_keys(piece: Piece, config: Table) -> list[str] | None:
    """List the keys of the first rows; None if there is no row that is an object.

    Raises:
        DataError: the file is one JSON value over several lines.
    """
    keys: dict[str, None] = {}
    first, seen = "", 0
    for chunk, _ in _line_chunks(piece, config.encoding):
        for text in _decode(chunk[: LINES_FOR_KEYS - seen], config.encoding)[0]:
            first = first or text.strip()
            keys |= dict.fromkeys(_parse_json(text)[0])
        seen += len(chunk)
        if seen >= LINES_FOR_KEYS:
            break
    if not keys and (first.startswith("[") or first == "{"):
        raise DataError(
            f"{piece.name} starts with {first[:1]} and has no line that is a JSON object\n"
            "expected JSON Lines: one object a line, without brackets or commas around them"
        )
    return list(keys) or None


# ---- Parquet ------------------------------------------------------------------------------------


def _plan_parquet(piece: Piece, config: Table) -> list[Piece]:
    """Cut a file into pieces of whole row groups, about `ROWS_PER_PIECE` rows each."""
    with _open_parquet(piece) as file:
        piece = replace(piece, header=tuple(file.schema_arrow.names))
        _require(config, piece.name, file.schema_arrow.names)
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
    pieces, groups, first, rows = [], list[int](), 0, 0
    for number, size in enumerate(sizes):
        groups.append(number)
        rows += size
        if rows - first >= ROWS_PER_PIECE or number == len(sizes) - 1:
            pieces.append(replace(piece, row_groups=tuple(groups), first_row=first))
            groups, first = [], rows
    return pieces


def _read_parquet(piece: Piece, config: Table) -> Iterator[pa.Table]:
    names, row = _source_columns(config), piece.first_row
    sources = list(dict.fromkeys(names.values()))
    with _open_parquet(piece) as file:
        batches = file.iter_batches(ROWS_PER_BATCH, row_groups=piece.row_groups, columns=sources)
        for batch in batches:
            columns = {name: batch.column(source) for name, source in names.items()}
            yield _table(columns, piece, row, None, None, rows=batch.num_rows)
            row += batch.num_rows


def _open_parquet(piece: Piece) -> pq.ParquetFile:
    system, inner = storage.filesystem(piece.path)
    return pq.ParquetFile(system.open_input_file(inner))


# ---- common -------------------------------------------------------------------------------------


def _table(
    columns: dict[str, pa.Array],
    piece: Piece,
    row: int,
    texts: pa.Array | None,
    reasons: list[str | None] | None,
    *,
    rows: int | None = None,
) -> pa.Table:
    count = len(texts) if texts is not None else rows or 0
    columns[SOURCE] = pa.array([piece.name] * count, pa.string())
    columns[PLACE] = pa.array(np.arange(row, row + count) + piece.file * PLACES_PER_FILE)
    if texts is not None:
        columns[ROW] = texts
        columns[REASON] = pa.array(reasons, pa.string())
    return pa.table(columns)


def _open(piece: Piece) -> Any:
    """Open a file for reading; `.gz` and the like are unpacked on the way."""
    system, inner = storage.filesystem(piece.path)
    return system.open_input_stream(inner)


def _require(config: Table, name: str, found: list[str]) -> None:
    """Check that a file has the columns that the configuration reads, once each."""
    wanted = _source_columns(config)
    missing = [f'"{source}"' for source in dict.fromkeys(wanted.values()) if source not in found]
    double = [f'"{source}"' for source in wanted.values() if found.count(source) > 1]
    if not missing and not double:
        return
    shown = ", ".join(found[:20]) + (", ..." if found[20:] else "")
    what = f"no column {', '.join(missing)}" if missing else f"two columns {', '.join(double)}"
    raise DataError(
        f"{name}: {what}; columns found: {shown}\n"
        "name the file's columns in the configuration (user_id, item_id, timestamp, columns.*"
        ".source), and its delimiter"
    )


def _format(path: str, declared: str) -> Format:
    if declared != "auto":
        return declared  # type: ignore[return-value]  # the schema admits only formats
    name = storage.base_name(path).lower()
    for ending in (".gz", ".bz2", ".zst", ".lz4"):
        name = name.removesuffix(ending)
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    return "jsonl" if name.endswith((".jsonl", ".ndjson", ".json")) else "csv"


def _find_files(full: str) -> tuple[list[fs.FileInfo], bool]:
    """Give the files that a path means, and whether it is a pattern: what exists is none."""
    system, inner = storage.filesystem(full)
    info = system.get_file_info(inner)
    if info.type == fs.FileType.File:
        return [info], False
    if info.type == fs.FileType.NotFound and any(sign in inner for sign in "*?["):
        depth = next(n for n, part in enumerate(inner.split("/")) if any(c in part for c in "*?["))
        base = "/".join(inner.split("/")[:depth])
        infos = [
            info for info in _walk(system, base) if _matches(info.path.split("/"), inner.split("/"))
        ]
        if not _is_hidden(inner[len(base) :]):
            infos = [info for info in infos if not _is_hidden(info.path[len(base) :])]
        return infos, True
    return [info for info in _walk(system, inner) if not _is_hidden(info.path[len(inner) :])], False


def _walk(system: fs.FileSystem, base: str) -> list[fs.FileInfo]:
    selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
    try:
        infos = system.get_file_info(selector)
    except NotADirectoryError:
        return []
    return [info for info in infos if info.type == fs.FileType.File]


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Match part by part, so that `*` stays within a folder; `**` is any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[n:], patterns[1:]) for n in range(len(parts) + 1))
    here = bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0])
    return here and _matches(parts[1:], patterns[1:])
