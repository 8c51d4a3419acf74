"""From files to marked rows, in parallel Ray tasks, and what is asked of them before ordering.

Every record comes back as a row, with a reason if it is set aside, because only so can all be
accounted for. What a row must be is `contract`'s business, how a file is read `readers`'.
"""

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from mtrec.data import contract, readers, splits
from mtrec.data.clean import ValueCounts, encode
from mtrec.data.contract import PLACE, REASON, ROW, SOURCE, Table
from mtrec.data.readers import Piece
from mtrec.errors import DataError

USERS_PER_SAMPLE = 16
"""One user in so many, chosen by hash, decides where the parts begin."""

PART = "_part"
"""Column with the number of a row's part."""

_STOP = "\0"
"""Starts a reason that is an error of the whole file; no row's own reason does."""


def read_marked(
    pieces: list[Piece], table: Table, known: dict[str, "ray.ObjectRef[pa.Array]"]
) -> "ray.data.Dataset":
    """Read pieces in parallel tasks; every row comes back, with `_reason` if it is set aside."""
    numbers = ray.data.from_items(
        [{"piece": n} for n in range(len(pieces))], override_num_blocks=max(1, len(pieces))
    )
    return numbers.map_batches(
        partial(_mark_piece, pieces=pieces, table=table, known=known),
        batch_size=1,
        batch_format="pyarrow",
    )


def count_reasons(marked: "ray.data.Dataset") -> tuple[int, Counter[str]]:
    """Count the rows that are accepted, and the others by their reason.

    Raises:
        DataError: a file could not be read to its end.
    """
    tally = collect(marked.map_batches(_count_reasons, batch_size=None, batch_format="pyarrow"))
    counts: Counter[str] = Counter()
    for row in tally.to_pylist() if tally is not None else []:
        counts[row["reason"] or ""] += row["count"]
    accepted = counts.pop("", 0)
    check_read(counts)
    return accepted, counts


def check_read(reasons: Iterable[str]) -> None:
    """Raise what stopped a task from reading its piece to the end.

    Raises:
        DataError: a file could not be read to its end.
    """
    for reason in reasons:
        if reason.startswith(_STOP):
            raise DataError(reason.removeprefix(_STOP))


def rejected_rows(marked: "ray.data.Dataset") -> Iterator[pa.Table]:
    """Bring the rows that are set aside to the driver, a block at a time."""
    return batches(marked.map_batches(_only_rejected, batch_size=None, batch_format="pyarrow"))


def count_times(marked: "ray.data.Dataset") -> ValueCounts:
    """Count the times of the accepted rows, of which there is at least one."""
    counted = collect(marked.map_batches(_count_times, batch_size=None, batch_format="pyarrow"))
    assert counted is not None, "some events are accepted"
    cells = counted.column("times").to_pylist()
    times: ValueCounts = reduce(ValueCounts.merge, (pickle.loads(cell) for cell in cells))
    return times


def assign_parts(marked: "ray.data.Dataset", num_parts: int) -> tuple["ray.data.Dataset", int]:
    """Leave the accepted rows and name each one's part, a range of users.

    Gives about `num_parts` parts of like size, and their number; the data alone decides them.
    """
    starts = _part_starts(marked, num_parts)
    assigned: ray.data.Dataset = marked.map_batches(
        partial(_assign_parts, starts=starts), batch_size=None, batch_format="pyarrow"
    )
    return assigned, len(starts) + 1


def batches(dataset: "ray.data.Dataset") -> Iterator[pa.Table]:
    """Bring a data set to the driver, a block at a time; blocks without rows are left out."""
    found: Iterable[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return (batch for batch in found if batch.num_rows)


def collect(dataset: "ray.data.Dataset") -> pa.Table | None:
    """Bring a small data set to the driver; None if it has no rows."""
    found = list(batches(dataset))
    return pa.concat_tables(found) if found else None


# ---- what runs in tasks -------------------------------------------------------------------------


def _mark_piece(
    batch: pa.Table,
    pieces: list[Piece],
    table: Table,
    known: dict[str, "ray.ObjectRef[pa.Array]"],
) -> Iterator[pa.Table]:
    ids = {name: ray.get(reference) for name, reference in known.items()}
    for number in batch.column("piece").to_pylist():
        try:
            for raw in readers.read(pieces[number], table):
                yield contract.mark(raw, table, ids)
        except DataError as error:
            # As a row: what Ray Data makes of an exception in a task has lost its cause.
            columns = {name: pa.nulls(1) for name in contract.source_columns(table)}
            told = {SOURCE: [pieces[number].name], PLACE: [0], ROW: [""]}
            yield contract.mark(pa.table(columns | told | {REASON: [_STOP + str(error)]}), table)


def _count_reasons(marked: pa.Table) -> pa.Table:
    counted = pc.value_counts(marked.column(REASON))
    return pa.table({"reason": counted.field("values"), "count": counted.field("counts")})


def _only_rejected(marked: pa.Table) -> pa.Table:
    rejected = marked.filter(pc.is_valid(marked.column(REASON)))
    return rejected.select([SOURCE, PLACE, ROW, REASON])


def _count_times(marked: pa.Table) -> pa.Table:
    valid = marked.filter(pc.is_null(marked.column(REASON)))
    times = ValueCounts.of(valid.column("timestamp").to_numpy())
    return pa.table({"times": pa.array([pickle.dumps(times)], pa.large_binary())})


def _sampled_users(marked: pa.Table) -> pa.Table:
    valid = marked.filter(pc.is_null(marked.column(REASON)))
    counted = pc.value_counts(valid.column("user_id"))
    hashes = splits.hash_strings(counted.field("values"))
    sampled = pa.array(hashes % np.uint64(USERS_PER_SAMPLE) == 0)
    return pa.table(
        {
            "user_id": counted.field("values").filter(sampled),
            "events": counted.field("counts").filter(sampled),
        }
    )


def _part_starts(marked: "ray.data.Dataset", num_parts: int) -> list[str]:
    """Give the first user of each part but the first, from a sample that the data alone decides."""
    if num_parts < 2:
        return []
    sample = collect(marked.map_batches(_sampled_users, batch_size=None, batch_format="pyarrow"))
    if sample is None:
        return []
    totals = sample.group_by("user_id").aggregate([("events", "sum")]).sort_by("user_id")
    upto = np.cumsum(totals.column("events_sum").to_numpy())
    wanted = upto[-1] * np.arange(1, num_parts) / num_parts if len(upto) else np.zeros(0)
    places = np.unique(np.searchsorted(upto, wanted, side="right"))
    places = places[places < totals.num_rows]
    starts: list[str] = totals.column("user_id").take(pa.array(places)).to_pylist()
    return starts


def _assign_parts(marked: pa.Table, starts: list[str]) -> pa.Table:
    """Leave the accepted rows and name each one's part."""
    valid = marked.filter(pc.is_null(marked.column(REASON))).drop_columns([SOURCE, ROW, REASON])
    codes, users = encode(valid.column("user_id"))
    names = np.array(users.to_pylist(), dtype=object)
    part = np.searchsorted(np.array(starts, dtype=object), names, side="right").astype(np.int32)
    return valid.append_column(PART, pa.array(part[codes], pa.int32()))
