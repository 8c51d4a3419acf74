"""The Ray Data driver of `prepare`: raw tables -> checked -> ordered and split -> dataset artifact.

Files are read, checked and marked in parallel tasks (`marked`); the rows are then cut into parts,
ranges of users that depend on the data alone, so that the artifact has the same bytes whatever the
number of blocks and workers. What is computed lives in `contract`, `parts`, `features` and is
tested without Ray; `packed` is what Ray's tasks call; `accounts` knows what became of each row;
here is what follows what.
"""

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.config import Config
from mtrec.data import contract, readers, splits
from mtrec.data.accounts import Accounts
from mtrec.data.casts import are_integers
from mtrec.data.clean import Bounds, merge_summaries, outlier_bounds
from mtrec.data.columns import FIRST_KNOWN
from mtrec.data.contract import Table
from mtrec.data.dataset import write_table
from mtrec.data.features import FeatureTransform, fit_transform, summarise
from mtrec.data.histories import SPLITS
from mtrec.data.labelcheck import check_labels, join_ranges
from mtrec.data.lookup import all_users, read_links, read_lookup
from mtrec.data.marked import (
    PART,
    assign_parts,
    collect,
    count_reasons,
    count_times,
    read_marked,
    rejected_rows,
)
from mtrec.data.packed import limit_packed, order_group, read_tallies, write_packed
from mtrec.data.parts import PartTally
from mtrec.data.readers import Piece
from mtrec.data.sources import resolve_root
from mtrec.dataconfig import GlobalTimeSplit, ItemsTable, NumberColumn, UsersTable
from mtrec.errors import DataError
from mtrec.modelconfig import label_tasks
from mtrec.runlog import timed
from mtrec.text.templates import render_rows

logger = logging.getLogger("mtrec.data")

EVENTS_PER_PART = 500_000
"""A part is what one task holds in memory; about 100 bytes an event."""
_REASONS_SHOWN = 3
_LIKE_A_TIME = re.compile(r"(?i)time|date|(^|_)ts($|_)")
HASHED_INPUT_BYTES = 256 << 20
"""Inputs up to this size are told apart by content, larger ones by size and time of change."""


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
            with readers.explained(path):
                content = (
                    storage.hash_file(path)[0] if small else f"{size} bytes, changed {changed}"
                )
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
        artifacts.write_artifact(path, kind="dataset", key=key) as writer,
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
            "duplicates": sum(table["duplicates"] for table in report["tables"].values()),
        }
    for line in _worth_saying(config, plans, report, path):
        logger.warning("%s", line)
    manifest = artifacts.find_manifest(path)
    assert manifest is not None, f"{path} was just written"
    return manifest


def _worth_saying(
    config: Config, plans: dict[str, list[Piece]], report: dict[str, Any], path: str
) -> Iterator[str]:
    """Yield what a user would want to know of the rows without opening the report."""
    for name, table in report["tables"].items():
        if table["rejected"]:
            common = Counter(table["reasons"]).most_common(_REASONS_SHOWN)
            told = "; ".join(f"{count} x {reason}" for reason, count in common)
            more = len(table["reasons"]) - len(common)
            yield (
                f"{name}: {table['rejected']} of {table['read']} rows are set aside: {told}"
                + (f"; {more} more reasons" if more else "")
                + f"; each is in {storage.join(path, 'rejected')}"
            )
    for name, does in (("validation", "nothing picks the epoch"), ("test", "nothing is judged")):
        if not report["split"][name]:
            yield f"interactions: no event is for {name}, so {does}; data.split decides it"
    for task in label_tasks(config.tasks):
        low, high = report["labels"].get(task.name, (None, None))
        if low == high:
            all_are = "no training event has one" if low is None else f"all are {low:g} in training"
            yield (
                f'task {task.name}: labels "{task.label}": {all_are}, so there is nothing to '
                "learn; look at the label's expression and column"
            )
    if config.data.interactions.timestamp is None:
        used = set(contract.source_columns(config.data.interactions).values())
        columns = {column for piece in plans["interactions"] for column in piece.header}
        for column in sorted(columns - used):
            if _LIKE_A_TIME.search(column):
                yield (
                    f'interactions: the column "{column}" looks like a time and is not used: the '
                    "order is the file's, and a user's events of one item are duplicates; name it "
                    "in data.interactions.timestamp"
                )


class _Preparation:
    """One run of `prepare`: the steps in order, and the report that they fill."""

    def __init__(self, config: Config, folder: str, plans: dict[str, list[Piece]]) -> None:
        self.config = config
        self.folder = folder
        self.plans = plans
        files = {table: {piece.file: piece.name for piece in plans[table]} for table in plans}
        self.accounts = Accounts(config, storage.join(folder, "rejected"), files)
        self.report = self.accounts.report

    def run(self) -> None:
        """Do all steps and write all files but the report."""
        config = self.config
        items = self._lookup_table("items", config.data.items)
        users = self._lookup_table("users", config.data.users)
        parts = self._order_events(items, users)
        tallies = self._tallies(parts)
        bounds = self._event_bounds(tallies)
        if bounds:
            parts = parts.map_batches(
                partial(limit_packed, config=config, bounds=bounds),
                batch_size=1,
                batch_format="pyarrow",
            ).materialize()
            tallies = self._tallies(parts)
            for name, limits in bounds.items():
                found = sum(tally.outliers[name] for tally in tallies)
                self.accounts.count_outliers("interactions", name, limits, found)
        self._account(tallies)
        trained_items = pa.concat_tables([t.items for t in tallies]).group_by("item_id")
        trained_items = trained_items.aggregate([("train_count", "sum")])
        trained_items = trained_items.rename_columns(["item_id", "train_count"])
        event_users = pa.concat_tables([tally.users for tally in tallies])
        links = None
        if config.data.social is not None:
            links = read_links(config, self.plans["social"], users, self.accounts)
        linked = [links.column(name) for name in ("user_id", "friend_id")] if links else []
        seen = pa.chunked_array(
            [
                chunk
                for column in (event_users.column("user_id"), *linked)
                for chunk in column.chunks
            ],
            pa.string(),
        )
        trained_users = event_users.filter(pc.greater(event_users.column("train_events"), 0))
        item_rows = items if items else trained_items.select(["item_id"]).sort_by("item_id")
        user_rows = all_users(users if users else None, seen)
        transform = self._fit(tallies, item_rows, trained_items, user_rows, trained_users)
        self._write_items(item_rows, trained_items, transform)
        told = self._finish_parts(parts, transform, item_rows)
        self._write_users(user_rows, told, transform)
        if links is not None:
            self._write("social.parquet", links)
        storage.write_json(storage.join(self.folder, "transform.json"), transform.to_json())
        self.accounts.close()
        self.report |= {"users": user_rows.num_rows, "items": item_rows.num_rows}

    def _lookup_table(self, name: str, table: ItemsTable | UsersTable | None) -> pa.Table | None:
        if table is None:
            return None
        keep = self.config.data.quality.keep
        return read_lookup(name, table, self.plans[name], keep, self.accounts)

    # ---- events -----------------------------------------------------------------------------

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
        tallies, set_aside = read_tallies(parts)
        for events in set_aside:
            self.accounts.write_set_aside(events, "interactions")
        return tallies

    def _order_events(self, items: pa.Table | None, users: pa.Table | None) -> "ray.data.Dataset":
        """Read the interactions and order them part by part; one row of the result is one part."""
        config, quality = self.config, self.config.data.quality
        known = {}
        if items is not None and quality.unknown_items == "reject":
            known["item_id"] = ray.put(items.column("item_id").combine_chunks())
        if users is not None and quality.unknown_users == "reject":
            known["user_id"] = ray.put(users.column("user_id").combine_chunks())
        table = config.data.interactions
        marked = read_marked(self.plans["interactions"], table, known).materialize()
        kept, self._reasons = count_reasons(marked)
        self._read = kept + self._reasons.total()
        if not kept:
            common = "; ".join(f"{n} x {reason}" for reason, n in self._reasons.most_common(3))
            raise DataError(
                f"interactions: none of {self._read} rows can be used"
                + (f"; reasons: {common}" if common else "")
                + "\ncheck the column names, types and id columns in data.*"
            )
        self.accounts.check_fraction(
            "interactions", self._read, self._reasons, rejected_rows(marked)
        )
        if self._reasons:
            for batch in rejected_rows(marked):
                self.accounts.write_rejected(batch, "interactions")
        assigned, num_parts = assign_parts(marked, math.ceil(kept / EVENTS_PER_PART))
        groups = assigned.groupby(PART, num_partitions=config.ray.partitions or num_parts)
        order = partial(order_group, config=config, cuts=self._cuts(marked))
        ordered: ray.data.Dataset = groups.map_groups(order, batch_format="pyarrow").materialize()
        return ordered

    def _cuts(self, marked: "ray.data.Dataset") -> tuple[float, float] | None:
        """Give the two moments of a split by global time; None for other splits."""
        split = self.config.data.split
        if not isinstance(split, GlobalTimeSplit):
            return None
        cuts = split.fixed_cuts
        if cuts is None:
            times = count_times(marked)
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
        self.accounts.count(
            "interactions",
            read=self._read,
            kept=kept,
            duplicates=duplicates,
            reasons=self._reasons,
        )
        totals = np.sum([tally.splits for tally in tallies], axis=0).tolist()
        self.report["split"] = dict(zip(SPLITS, totals, strict=True))
        splits.assert_counts_add_up(kept, sum(totals), 0, 0, "splits of interactions")
        if not totals[splits.TRAIN]:
            raise DataError(
                f"interactions: none of {kept} events is for training\n"
                "change data.split, or the split column that the data brings along"
            )
        check_labels(self.config, [tally.misfits for tally in tallies])
        self.report["labels"] = join_ranges([tally.labels for tally in tallies])

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
        integers = [tally.integer_ids for tally in tallies]
        id_types = {
            name: "int64"
            if all(flags[name] for flags in integers) and are_integers(table.column(name))
            else "string"
            for name, table in (("user_id", users), ("item_id", items))
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
            bounds=self.accounts.bounds,
        )

    # ---- files ------------------------------------------------------------------------------

    def _write_items(self, items: pa.Table, trained: pa.Table, transform: FeatureTransform) -> None:
        """Write the catalogue by position, and its vocabulary."""
        where = pc.index_in(items.column("item_id"), trained.column("item_id").combine_chunks())
        counts = pc.fill_null(trained.column("train_count").take(where), 0)
        index = pa.array(np.arange(items.num_rows, dtype=np.int32) + FIRST_KNOWN)
        texts = render_rows(items, self.config.text.item_template)
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
            columns["name"] = render_rows(items, f"{{{behaviour.item_column}}}")
        shared = ray.put((self.config, transform, pa.table(columns)))
        done = parts.map_batches(
            partial(write_packed, shared=[shared], folder=self.folder),
            batch_size=1,
            batch_format="pyarrow",
        )
        told = collect(done)
        assert told is not None, "there is at least one part"
        return told.sort_by("user_id")

    def _write_users(self, users: pa.Table, told: pa.Table, transform: FeatureTransform) -> None:
        """Write every user: columns, profile text, behaviour text."""
        where = pc.index_in(users.column("user_id"), told.column("user_id").combine_chunks())
        texts = render_rows(users, self.config.text.user_template)
        table = transform.fill_users(users)
        table = table.append_column("text", texts)
        table = table.append_column("behaviour_text", told.column("behaviour_text").take(where))
        cuts = pc.fill_null(told.column("behaviour_cut").take(where), 0)
        self._write("users.parquet", table.append_column("behaviour_cut", cuts))

    def _write(self, name: str, table: pa.Table) -> None:
        write_table(storage.join(self.folder, name), table)


def _tables(config: Config) -> dict[str, Table]:
    data = config.data
    tables: dict[str, Table | None] = {
        "items": data.items,
        "users": data.users,
        "social": data.social,
        "interactions": data.interactions,
    }
    return {name: table for name, table in tables.items() if table is not None}
