"""The accounts of one `prepare`: every row read is kept, set aside with a reason, or a duplicate.

Rows that are set aside are written to `rejected/` as they come, so that memory is bounded; counts
and bounds of outliers go into `report.json`. Nothing here reads input or knows Ray.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec import storage
from mtrec.config import Config
from mtrec.data import splits
from mtrec.data.clean import Bounds
from mtrec.data.contract import PLACE, REASON, REJECTED, ROW, SOURCE
from mtrec.data.dataset import write_table
from mtrec.data.readers import PLACES_PER_FILE
from mtrec.errors import DataError

REJECTED_PER_FILE = 100_000
_REASONS_SHOWN, _EXAMPLE_LENGTH = 10, 120


class Accounts:
    """What became of the rows of all tables.

    Attributes:
        report: the tree of the dataset's `report.json`, filled step by step.
        bounds: table -> column -> what its outliers are clipped to.
    """

    def __init__(self, config: Config, folder: str, files: Mapping[str, Mapping[int, str]]) -> None:
        """Open the accounts.

        Args:
            config: `data` is read.
            folder: receives the rows that are set aside.
            files: table -> number of a file -> its name.
        """
        self.report: dict[str, Any] = {"tables": {}}
        self.bounds: dict[str, dict[str, Bounds]] = {}
        self._config = config
        self._folder = folder
        self._files = files
        self._waiting = REJECTED.empty_table()
        self._written = 0

    def count(
        self, table: str, *, read: int, kept: int, duplicates: int, reasons: Counter[str]
    ) -> None:
        """Close the account of a table.

        Raises:
            AssertionError: the counts do not add up.
            DataError: too many rows were set aside, those of a split's gap not counted.
        """
        # Again, with what was set aside only after all rows had been read, such as outliers.
        told = Counter({name: count for name, count in reasons.items() if name != splits.IN_GAP})
        self.check_fraction(table, read, told)
        rejected = reasons.total()
        splits.assert_counts_add_up(read, kept, rejected, duplicates, table)
        self.report["tables"][table] = {
            "read": read,
            "kept": kept,
            "rejected": rejected,
            "duplicates": duplicates,
            "reasons": dict(sorted(reasons.items())),
        }

    def count_outliers(self, table: str, column: str, limits: Bounds, found: int) -> None:
        """Note what was found beyond a column's bounds, and the bounds if they clip."""
        outliers = getattr(self._config.data, table).columns[column].outliers
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

    def check_fraction(
        self, table: str, read: int, reasons: Counter[str], rejected: Iterable[pa.Table] = ()
    ) -> None:
        """Check that not too many rows are set aside.

        Args:
            table: its name.
            read: rows in all.
            reasons: of those that are set aside.
            rejected: such rows, for examples; read only if they are too many.

        Raises:
            DataError: they are; the message lists the reasons, with an example where there is one.
        """
        most = self._config.data.quality.max_rejected_fraction
        if reasons.total() <= most * read:
            return
        examples: dict[str, str] = {}
        for batch in rejected:
            for row in batch.select([SOURCE, ROW, REASON]).to_pylist():
                example = f"{row[SOURCE]}: {row[ROW]}".strip()[:_EXAMPLE_LENGTH]
                examples.setdefault(row[REASON], f"; for example {example!r}")
        lines = [
            f"  {count:>9,}  {reason}{examples.get(reason, '')}"
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

    def write_rejected(self, rejected: pa.Table, table: str) -> None:
        """Write rows with `_source`, `_row` and `_reason`, a bounded number a file."""
        names = pa.array([table] * rejected.num_rows, pa.string())
        columns = [rejected.column(SOURCE), names, rejected.column(ROW), rejected.column(REASON)]
        rows = pa.Table.from_arrays(columns, schema=REJECTED)
        self._waiting = pa.concat_tables([self._waiting, rows])
        while self._waiting.num_rows > REJECTED_PER_FILE:
            self._flush(REJECTED_PER_FILE)

    def write_set_aside(self, aside: pa.Table, table: str) -> None:
        """Write rows that were read well but set aside; their `_place` tells the file."""
        files = aside.column(PLACE).to_numpy() // PLACES_PER_FILE
        names = [self._files[table][file] for file in files.tolist()]
        self.write_rejected(aside.append_column(SOURCE, pa.array(names, pa.string())), table)

    def close(self) -> None:
        """Write what waits; there is one file at least."""
        if self._waiting.num_rows or not self._written:
            self._flush(self._waiting.num_rows)

    def _flush(self, rows: int) -> None:
        path = storage.join(self._folder, f"part-{self._written:05d}.parquet")
        write_table(path, self._waiting.slice(0, rows))
        self._waiting = self._waiting.slice(rows)
        self._written += 1
