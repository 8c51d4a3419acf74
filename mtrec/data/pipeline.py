"""The Ray Data driver of `prepare`: raw tables -> checked -> ordered and split -> dataset artifact.

Files are read, checked and marked piece by piece in parallel tasks; the marked rows are then cut
into parts, ranges of users that depend on the data alone, so that the artifact has the same bytes
whatever the number of blocks and workers. What is computed lives in `contract`, `parts`, `features`
and is tested without Ray; here is only where it runs and what is written.
"""

import io
import logging
import math
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from numpy.typing import NDArray

from mtrec import storage
from mtrec.config import Config, GlobalTimeSplit, ItemsTable, NumberColumn, UsersTable
from mtrec.data import contract, readers, splits
from mtrec.data.clean import (
    Bounds,
    Summary,
    ValueCounts,
    clip_outliers,
    encode,
    find_outliers,
    merge_duplicates,
    merge_summaries,
    outlier_bounds,
)
from mtrec.data.contract import PLACE, REASON, REJECTED, ROW, SOURCE, Table
from mtrec.data.features import FIRST_KNOWN, FeatureTransform, fit_transform, summarise
from mtrec.data.histories import SPLITS
from mtrec.data.parts import (
    OrderedPart,
    PartTally,
    check_labels,
    finish_part,
    limit_part,
    order_part,
    set_aside,
)
from mtrec.data.readers import Piece
from mtrec.data.sources import resolve_root
from mtrec.errors import DataError
from mtrec.runlog import timed
from mtrec.storage import Manifest
from mtrec.text.templates import render_template

logger = logging.getLogger("mtrec.data")

EVENTS_PER_PART = 500_000
"""A part is what one task holds in memory; about 100 bytes an event."""
USERS_PER_SAMPLE = 16
"""One user in so many, chosen by hash, decides where the parts begin."""
REJECTED_PER_FILE = 100_000
HASHED_INPUT_BYTES = 256 << 20
"""Inputs up to this size are told apart by content, larger ones by size and time of change."""

_PART = "_part"
_REASONS_SHOWN, _EXAMPLE_LENGTH = 10, 120
_STOP = "\0"
"""Starts a reason that is an error of the whole file; no row's own reason does."""


def input_fingerprint(config: Config) -> list[str]:
    """Name the input files and what tells their contents apart; other input, other list.

    Raises:
        DataError: a file is missing.
    """
    root = resolve_root(config.data)
    found = []
    for table, table_config in _tables(config).items():
        files = readers.input_files(table_config, root)
        small = sum(size for _, _, size, _ in files) <= HASHED_INPUT_BYTES
        for path, _, size, changed in files:
            content = storage.hash_file(path)[0] if small else f"{size} bytes, changed {changed}"
            found.append(f"{table}: {os.path.basename(path)}: {content}")
    return found


def prepare(config: Config, *, path: str, key: str) -> Manifest:
    """Read, check, clean and split the input tables and write the dataset artifact.

    Args:
        config: the run; `data`, `text` templates, `tasks` and `run.seed` are read.
        path: folder or URI of the artifact.
        key: what the manifest shall carry to tell whether the work is done.

    Raises:
        DataError: the input is missing, lacks a column, or holds nothing that can be used.
        ArtifactError: the artifact cannot be written.
    """
    root = resolve_root(config.data)
    plans = {table: readers.plan(part, root) for table, part in _tables(config).items()}
    with (
        timed(logger, "prepare") as told,
        storage.write_artifact(path, kind="dataset", key=key) as writer,
    ):
        # Tasks run in other folders: they need the whole path.
        folder = writer.path if "://" in path else os.path.abspath(writer.path)
        preparation = _Preparation(config, folder, plans)
        preparation.run()
        report = preparation.report
        storage.write_json(storage.join(folder, "report.json"), report)
        counts = {name: table["kept"] for name, table in report["tables"].items()}
        writer.details |= {
            "users": report["users"],
            "items": report["items"],
            "split": report["split"],
            "tables": report["tables"],
        }
        told |= {
            "users": report["users"],
            "items": report["items"],
            "events": counts["interactions"],
            "rejected": sum(table["rejected"] for table in report["tables"].values()),
        }
    manifest = storage.find_manifest(path)
    assert manifest is not None, f"{path} was just written"
    return manifest


class _Preparation:
    """One run of `prepare`: the steps in order, and the report that they fill."""

    def __init__(self, config: Config, folder: str, plans: dict[str, list[Piece]]) -> None:
        self.config = config
        self.folder = folder
        self.plans = plans
        self.report: dict[str, Any] = {"tables": {}}
        self.bounds: dict[str, dict[str, Bounds]] = {}
        self.rejects = _RejectWriter(storage.join(folder, "rejected"))

    def run(self) -> None:
        """Do all steps and write all files but the report."""
        config = self.config
        items = self._lookup_table("items", config.data.items) if config.data.items else None
        users = self._lookup_table("users", config.data.users) if config.data.users else None
        parts = self._order_events(items, users)
        tallies = self._tallies(parts)
        bounds = self._event_bounds(tallies)
        if bounds:
            parts = parts.map_batches(
                partial(_limit_group, config=config, bounds=bounds),
                batch_size=1,
                batch_format="pyarrow",
            ).materialize()
            tallies = self._tallies(parts)
            for name, limits in bounds.items():
                found = sum(tally.outliers[name] for tally in tallies)
                self._count_outliers("interactions", name, limits, found)
        self._account(tallies)
        trained_items = pa.concat_tables([t.items for t in tallies]).group_by("item_id")
        trained_items = trained_items.aggregate([("train_count", "sum")])
        trained_items = trained_items.rename_columns(["item_id", "train_count"])
        event_users = pa.concat_tables([tally.users for tally in tallies])
        trained_users = event_users.filter(pc.greater(event_users.column("train_events"), 0))
        item_rows = items if items else trained_items.select(["item_id"]).sort_by("item_id")
        user_rows = _all_users(users if users else None, event_users.column("user_id"))
        transform = self._fit(tallies, item_rows, trained_items, user_rows, trained_users)
        self._write_items(item_rows, trained_items, transform)
        told = self._finish_parts(parts, transform, item_rows)
        self._write_users(user_rows, told, transform)
        storage.write_json(storage.join(self.folder, "transform.json"), transform.to_json())
        self.rejects.close()
        self.report |= {"users": user_rows.num_rows, "items": item_rows.num_rows}

    # ---- tables -----------------------------------------------------------------------------

    def _lookup_table(self, name: str, table: ItemsTable | UsersTable) -> pa.Table:
        """Read the items or users table; of rows with one id only one stays."""
        marked = _collect(_marked(self.plans[name], table, {}))
        if marked is None:
            raise DataError(
                f"{name}: {table.path} holds no rows\n"
                f"give a table with rows, or leave data.{name} out"
            )
        accepted = pc.is_null(marked.column(REASON))
        rejected, valid = marked.filter(pc.invert(accepted)), marked.filter(accepted)
        reasons = Counter(rejected.column(REASON).to_pylist())
        _check_read(reasons)
        self.rejects.write(rejected, name)
        self._check_fraction(name, marked.num_rows, reasons, rejected)
        id_name = contract.id_columns(table)[0]
        kept, duplicate = merge_duplicates(
            valid,
            [encode(valid.column(id_name))[0]],
            [valid.column(PLACE).to_numpy()],
            self.config.data.quality.keep,
            table.columns,
        )
        kept, aside = self._limit_table(name, kept.combine_chunks(), table)
        reasons.update(aside.column(REASON).to_pylist())
        self._write_set_aside(aside, name)
        kept = kept.sort_by(id_name).combine_chunks()
        self._count(name, marked.num_rows, kept.num_rows, int(duplicate.sum()), reasons)
        return kept.select([id_name, *table.columns])

    def _limit_table(
        self, name: str, rows: pa.Table, table: ItemsTable | UsersTable
    ) -> tuple[pa.Table, pa.Table]:
        """Treat the outliers of an items or users table, whose rows all decide the bounds."""
        aside: dict[str, NDArray[np.bool_]] = {}
        for column_name, column in table.columns.items():
            if isinstance(column, NumberColumn) and column.outliers is not None:
                values = rows.column(column_name)
                limits = outlier_bounds(Summary.of(values, column), column.outliers)
                found = find_outliers(values, limits)
                self._count_outliers(name, column_name, limits, int(found.sum()))
                if column.outliers.action == "reject":
                    aside[f"{column_name} is an outlier"] = found
                elif column.outliers.action == "clip":
                    rows = _with_column(rows, column_name, clip_outliers(values, limits))
        gone = np.logical_or.reduce([np.zeros(rows.num_rows, bool), *aside.values()])
        told = rows.select([*contract.source_columns(table), PLACE])
        return rows.filter(pa.array(~gone)), set_aside(told, aside)

    def _count_outliers(self, table: str, column: str, limits: Bounds, found: int) -> None:
        outliers = getattr(self.config.data, table).columns[column].outliers
        if outliers.action == "clip" and np.isfinite(limits).all():
            self.bounds.setdefault(table, {})[column] = limits
        told = self.report.setdefault("outliers", {}).setdefault(table, {})
        told[column] = {
            "method": outliers.method,
            "action": outliers.action,
            "low": limits[0] if np.isfinite(limits[0]) else None,
            "high": limits[1] if np.isfinite(limits[1]) else None,
            "found": found,
        }

    def _event_bounds(self, tallies: list[PartTally]) -> dict[str, Bounds]:
        """Give the bounds of the interactions' columns whose outliers are looked for."""
        return {
            name: outlier_bounds(
                merge_summaries([tally.summaries[name] for tally in tallies]), column.outliers
            )
            for name, column in self.config.data.interactions.columns.items()
            if isinstance(column, NumberColumn) and column.outliers is not None
        }

    def _tallies(self, parts: "ray.data.Dataset") -> list[PartTally]:
        """Give the tallies in the order of the parts; write the events that were set aside."""
        told = _collect(parts.select_columns([_PART, "tally", "rejected"]))
        assert told is not None, "there is at least one part"
        told = told.sort_by(_PART)
        for cell in told.column("rejected").to_pylist():
            with pa.ipc.open_stream(cell) as stream:
                self._write_set_aside(stream.read_all(), "interactions")
        return [pickle.loads(cell) for cell in told.column("tally").to_pylist()]

    def _write_set_aside(self, aside: pa.Table, table: str) -> None:
        """Write rows that were read well but set aside; their place tells the file."""
        names = {piece.file: piece.name for piece in self.plans[table]}
        files = aside.column(PLACE).to_numpy() // readers.PLACES_PER_FILE
        sources = pa.array([names[file] for file in files.tolist()], pa.string())
        self.rejects.write(aside.append_column(SOURCE, sources), table)

    def _order_events(self, items: pa.Table | None, users: pa.Table | None) -> "ray.data.Dataset":
        """Read the interactions and order them part by part; one row of the result is one part."""
        config, quality = self.config, self.config.data.quality
        known = {}
        if items is not None and quality.unknown_items == "reject":
            known["item_id"] = ray.put(items.column("item_id").combine_chunks())
        if users is not None and quality.unknown_users == "reject":
            known["user_id"] = ray.put(users.column("user_id").combine_chunks())
        marked = _marked(self.plans["interactions"], config.data.interactions, known).materialize()
        tally = _collect(
            marked.map_batches(_count_reasons, batch_size=None, batch_format="pyarrow")
        )
        counts: Counter[str] = Counter()
        for row in tally.to_pylist() if tally is not None else []:
            counts[row["reason"] or ""] += row["count"]
        kept = counts.pop("", 0)
        _check_read(counts)
        self._reasons, self._read = counts, kept + counts.total()
        rejected = marked.map_batches(_only_rejected, batch_size=None, batch_format="pyarrow")
        if not kept:
            common = "; ".join(f"{n} x {reason}" for reason, n in counts.most_common(3))
            raise DataError(
                f"interactions: none of {self._read} rows can be used"
                + (f"; reasons: {common}" if common else "")
                + "\ncheck the column names, types and id columns in data.*"
            )
        self._check_fraction("interactions", self._read, counts, rejected)
        if counts:
            for batch in _batches(rejected):
                self.rejects.write(batch, "interactions")
        num_parts = math.ceil(kept / EVENTS_PER_PART)
        starts = _part_starts(marked, num_parts)
        assigned = marked.map_batches(
            partial(_assign_parts, starts=starts), batch_size=None, batch_format="pyarrow"
        )
        partitions = config.ray.partitions or len(starts) + 1
        groups = assigned.groupby(_PART, num_partitions=partitions)
        order = partial(_order_group, config=config, cuts=self._cuts(marked))
        ordered = groups.map_groups(order, batch_format="pyarrow")
        materialized: ray.data.Dataset = ordered.materialize()
        return materialized

    def _cuts(self, marked: "ray.data.Dataset") -> tuple[float, float] | None:
        """Give the two moments of a split by global time; None for other splits."""
        split = self.config.data.split
        if not isinstance(split, GlobalTimeSplit):
            return None
        cuts = split.fixed_cuts
        if cuts is None:
            counted = _collect(
                marked.map_batches(_count_times, batch_size=None, batch_format="pyarrow")
            )
            assert counted is not None, "some events are accepted"
            times = reduce(
                ValueCounts.merge,
                (pickle.loads(cell) for cell in counted.column("times").to_pylist()),
            )
            shares = (1.0 - split.validation - split.test, 1.0 - split.test)
            cuts = (times.quantile(shares[0]), times.quantile(shares[1]))
        moments = {"validation_from": cuts[0], "test_from": cuts[1], "gap_s": split.gap_s}
        self.report["global_time"] = moments
        return cuts

    def _account(self, tallies: list[PartTally]) -> None:
        """Put the interactions into the report and check that there is something to learn from."""
        self._reasons = sum((tally.rejected for tally in tallies), self._reasons)
        kept = sum(tally.kept for tally in tallies)
        duplicates = sum(tally.duplicates for tally in tallies)
        self._count("interactions", self._read, kept, duplicates, self._reasons)
        totals = np.sum([tally.splits for tally in tallies], axis=0).tolist()
        self.report["split"] = dict(zip(SPLITS, totals, strict=True))
        splits.assert_counts_add_up(kept, sum(totals), 0, 0, "splits of interactions")
        if not totals[splits.TRAIN]:
            raise DataError(
                f"interactions: none of {kept} events is for training\n"
                "change data.split, or the split column that the data brings along"
            )
        check_labels(self.config, tallies)

    def _check_fraction(
        self,
        table: str,
        read: int,
        reasons: Counter[str],
        rejected: "pa.Table | ray.data.Dataset",
    ) -> None:
        """Stop if too many rows are set aside; the message lists the reasons with an example."""
        most = self.config.data.quality.max_rejected_fraction
        if reasons.total() <= most * read:
            return
        batches = [rejected] if isinstance(rejected, pa.Table) else _batches(rejected)
        examples: dict[str, str] = {}
        for batch in batches:
            for row in batch.select([SOURCE, ROW, REASON]).to_pylist():
                examples.setdefault(row[REASON], f"{row[SOURCE]}: {row[ROW]}".strip())
        lines = [
            f"  {count:>9,}  {reason}; for example {examples[reason][:_EXAMPLE_LENGTH]!r}"
            for reason, count in reasons.most_common(_REASONS_SHOWN)
        ]
        more = len(reasons) - len(lines)
        raise DataError(
            f"{table}: {reasons.total():,} of {read:,} rows are set aside "
            f"({reasons.total() / read:.1%}), more than data.quality.max_rejected_fraction "
            f"{most:g}\n"
            + "\n".join([*lines, *([f"  and {more} more reasons"] if more > 0 else [])])
            + "\nmend the source or the column settings in data.*, or raise "
            "data.quality.max_rejected_fraction"
        )

    def _count(
        self, table: str, read: int, kept: int, duplicates: int, reasons: Counter[str]
    ) -> None:
        rejected = reasons.total()
        splits.assert_counts_add_up(read, kept, rejected, duplicates, table)
        self.report["tables"][table] = {
            "read": read,
            "kept": kept,
            "rejected": rejected,
            "duplicates": duplicates,
            "reasons": dict(sorted(reasons.items())),
        }

    def _fit(
        self,
        tallies: list[PartTally],
        items: pa.Table,
        trained_items: pa.Table,
        users: pa.Table,
        trained_users: pa.Table,
    ) -> FeatureTransform:
        """Fit the transform on training events, and on items and users that have one."""
        data = self.config.data
        in_training = pc.is_in(items.column("item_id"), trained_items.column("item_id"))
        of_training = pc.is_in(users.column("user_id"), trained_users.column("user_id"))
        times = [t.train_time_range for t in tallies if t.train_time_range is not None]
        integers = [tally.integer_ids for tally in tallies]
        id_types = {
            name: "int64" if all(flags[name] for flags in integers) else "string"
            for name in ("user_id", "item_id")
        }
        self.report["id_types"] = id_types
        return fit_transform(
            self.config,
            items=summarise(items.filter(in_training), data.items.columns if data.items else {}),
            users=summarise(users.filter(of_training), data.users.columns if data.users else {}),
            events={
                name: merge_summaries([tally.summaries[name] for tally in tallies])
                for name in data.interactions.columns
            },
            id_types=id_types,
            train_time_range=(min(t[0] for t in times), max(t[1] for t in times))
            if times
            else None,
            bounds=self.bounds,
        )

    # ---- files ------------------------------------------------------------------------------

    def _write_items(self, items: pa.Table, trained: pa.Table, transform: FeatureTransform) -> None:
        """Write the catalogue by position, and its vocabulary."""
        where = pc.index_in(items.column("item_id"), trained.column("item_id").combine_chunks())
        counts = pc.fill_null(trained.column("train_count").take(where), 0)
        index = pa.array(np.arange(items.num_rows, dtype=np.int32) + FIRST_KNOWN)
        texts = _texts(items, self.config.text.item_template)
        table = transform.fill_items(items)
        table = table.add_column(1, "item_index", index).add_column(2, "train_count", counts)
        self._write("items.parquet", table.append_column("text", texts))
        self._write("vocabularies/items.parquet", table.select(["item_index", "item_id"]))

    def _finish_parts(
        self, parts: "ray.data.Dataset", transform: FeatureTransform, items: pa.Table
    ) -> pa.Table:
        """Write interactions and histories part by part; give what is told of the users."""
        columns = {"item_id": items.column("item_id")}
        behaviour = self.config.text.behaviour
        if behaviour is not None:
            columns["name"] = _texts(items, f"{{{behaviour.item_column}}}")
        shared = ray.put((self.config, transform, pa.table(columns)))
        done = parts.map_batches(
            partial(_write_part, shared=[shared], folder=self.folder),
            batch_size=1,
            batch_format="pyarrow",
        )
        told = _collect(done)
        assert told is not None, "there is at least one part"
        return told.sort_by("user_id")

    def _write_users(self, users: pa.Table, told: pa.Table, transform: FeatureTransform) -> None:
        """Write every user: columns, profile text, behaviour text."""
        where = pc.index_in(users.column("user_id"), told.column("user_id").combine_chunks())
        texts = _texts(users, self.config.text.user_template)
        table = transform.fill_users(users)
        table = table.append_column("text", texts)
        table = table.append_column("behaviour_text", told.column("behaviour_text").take(where))
        cuts = pc.fill_null(told.column("behaviour_cut").take(where), 0)
        self._write("users.parquet", table.append_column("behaviour_cut", cuts))

    def _write(self, name: str, table: pa.Table) -> None:
        _write_parquet(storage.join(self.folder, name), table)


class _RejectWriter:
    """Writes rejected rows in the order given, a bounded number a file; at least one file."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._waiting = REJECTED.empty_table()
        self._files = 0

    def write(self, rejected: pa.Table, table: str) -> None:
        """Add rows with `_source`, `_row` and `_reason`."""
        names = pa.array([table] * rejected.num_rows, pa.string())
        columns = [rejected.column(SOURCE), names, rejected.column(ROW), rejected.column(REASON)]
        rows = pa.Table.from_arrays(columns, schema=REJECTED)
        self._waiting = pa.concat_tables([self._waiting, rows])
        while self._waiting.num_rows > REJECTED_PER_FILE:
            self._flush(REJECTED_PER_FILE)

    def close(self) -> None:
        """Write what waits."""
        if self._waiting.num_rows or not self._files:
            self._flush(self._waiting.num_rows)

    def _flush(self, rows: int) -> None:
        path = storage.join(self._folder, f"part-{self._files:05d}.parquet")
        _write_parquet(path, self._waiting.slice(0, rows))
        self._waiting = self._waiting.slice(rows)
        self._files += 1


# ---- what runs in tasks ---------------------------------------------------------------------


def _marked(
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


def _check_read(reasons: Iterable[str]) -> None:
    """Raise what stopped a task from reading its piece to the end."""
    for reason in reasons:
        if reason.startswith(_STOP):
            raise DataError(reason.removeprefix(_STOP))


def _count_reasons(marked: pa.Table) -> pa.Table:
    counted = pc.value_counts(marked.column(REASON))
    return pa.table({"reason": counted.field("values"), "count": counted.field("counts")})


def _only_rejected(marked: pa.Table) -> pa.Table:
    rejected = marked.filter(pc.is_valid(marked.column(REASON)))
    return rejected.select([SOURCE, PLACE, ROW, REASON])


def _assign_parts(marked: pa.Table, starts: list[str]) -> pa.Table:
    """Leave the accepted rows and name each one's part."""
    valid = marked.filter(pc.is_null(marked.column(REASON))).drop_columns([SOURCE, ROW, REASON])
    codes, users = encode(valid.column("user_id"))
    names = np.array(users.to_pylist(), dtype=object)
    part = np.searchsorted(np.array(starts, dtype=object), names, side="right").astype(np.int32)
    return valid.append_column(_PART, pa.array(part[codes], pa.int32()))


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
    sample = _collect(marked.map_batches(_sampled_users, batch_size=None, batch_format="pyarrow"))
    if sample is None:
        return []
    totals = sample.group_by("user_id").aggregate([("events", "sum")]).sort_by("user_id")
    upto = np.cumsum(totals.column("events_sum").to_numpy())
    wanted = upto[-1] * np.arange(1, num_parts) / num_parts if len(upto) else np.zeros(0)
    places = np.unique(np.searchsorted(upto, wanted, side="right"))
    places = places[places < totals.num_rows]
    starts: list[str] = totals.column("user_id").take(pa.array(places)).to_pylist()
    return starts


def _count_times(marked: pa.Table) -> pa.Table:
    valid = marked.filter(pc.is_null(marked.column(REASON)))
    times = ValueCounts.of(valid.column("timestamp").to_numpy())
    return pa.table({"times": pa.array([pickle.dumps(times)], pa.large_binary())})


def _order_group(group: pa.Table, config: Config, cuts: tuple[float, float] | None) -> pa.Table:
    part = group.column(_PART)[0].as_py()
    return _to_row(part, order_part(group.drop_columns([_PART]), config, cuts))


def _limit_group(batch: pa.Table, config: Config, bounds: dict[str, Bounds]) -> pa.Table:
    tally = pickle.loads(batch.column("tally")[0].as_py())
    return _to_row(
        batch.column(_PART)[0].as_py(), limit_part(_events(batch), tally, config, bounds)
    )


def _to_row(part: int, ordered: OrderedPart) -> pa.Table:
    """Put a whole part into one row, so that no block can cut it in two."""
    cells = {
        "events": _to_bytes(ordered.events),
        "tally": pickle.dumps(ordered.tally),
        "rejected": _to_bytes(ordered.rejected),
    }
    columns = {name: pa.array([cell], pa.large_binary()) for name, cell in cells.items()}
    return pa.table({_PART: pa.array([part], pa.int32()), **columns})


def _events(row: pa.Table) -> pa.Table:
    with pa.ipc.open_stream(row.column("events")[0].as_buffer()) as stream:
        return stream.read_all()


def _write_part(
    batch: pa.Table,
    shared: list["ray.ObjectRef[tuple[Config, FeatureTransform, pa.Table]]"],
    folder: str,
) -> pa.Table:
    config, transform, items = ray.get(shared[0])
    part = batch.column(_PART)[0].as_py()
    finished = finish_part(_events(batch), config, transform, items)
    name = f"part-{part:05d}.parquet"
    _write_parquet(storage.join(folder, "interactions", name), finished.interactions)
    _write_parquet(storage.join(folder, "histories", name), finished.histories)
    return finished.users


# ---- small pieces ---------------------------------------------------------------------------


def _tables(config: Config) -> dict[str, Table]:
    data = config.data
    tables = {"items": data.items, "users": data.users, "interactions": data.interactions}
    return {name: table for name, table in tables.items() if table is not None}


def _batches(dataset: "ray.data.Dataset") -> Iterator[pa.Table]:
    found: Iterable[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return (batch for batch in found if batch.num_rows)


def _collect(dataset: "ray.data.Dataset") -> pa.Table | None:
    """Bring a small data set to the driver; None if it has no rows."""
    batches = list(_batches(dataset))
    return pa.concat_tables(batches) if batches else None


def _all_users(users: pa.Table | None, seen: pa.ChunkedArray) -> pa.Table:
    """Give the users of the table and those with events, sorted; the latter have null columns."""
    ids = pa.table({"user_id": pc.unique(seen)})
    if users is None:
        return ids.sort_by("user_id")
    new = ids.filter(pc.invert(pc.is_in(ids.column("user_id"), users.column("user_id"))))
    both = pa.concat_tables([users, new], promote_options="default")
    return both.sort_by("user_id").combine_chunks()


def _texts(table: pa.Table, template: str | None) -> pa.Array:
    """Render each row's text from what is told of it; null where nothing is."""
    if template is None:
        return pa.nulls(table.num_rows, pa.string())
    texts = [render_template(template, row) or None for row in table.to_pylist()]
    return pa.array(texts, pa.string())


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _write_parquet(path: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    storage.write_bytes(path, sink.getvalue())
