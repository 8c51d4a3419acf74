"""The tables beside the interactions, read whole: items, users and links.

Each row is checked and accounted for; of rows with one id, and of links, one stays.
"""

from collections import Counter
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import ray

from mtrec.config import Config
from mtrec.data import contract
from mtrec.data.accounts import Accounts
from mtrec.data.clean import Summary, encode, merge_duplicates, outlier_bounds
from mtrec.data.contract import PLACE, REASON
from mtrec.data.histories import SPLITS
from mtrec.data.links import clean_links, split_links
from mtrec.data.marked import check_read, collect, read_marked
from mtrec.data.parts import treat_outliers
from mtrec.data.readers import Piece
from mtrec.dataconfig import ItemsTable, UsersTable
from mtrec.errors import DataError


def read_lookup(
    name: str,
    table: ItemsTable | UsersTable,
    pieces: list[Piece],
    keep: Literal["last", "first", "mean"],
    accounts: Accounts,
) -> pa.Table:
    """Read the items or users table; of rows with one id only one stays.

    Args:
        name: `items` or `users`.
        table: its section of the configuration.
        pieces: what there is to read.
        keep: which of several rows with one id stays.
        accounts: is told of every row.

    Raises:
        DataError: there are no rows, or too many are set aside.
    """
    marked = collect(read_marked(pieces, table, {}))
    if marked is None:
        raise DataError(
            f"{name}: {table.path} holds no rows\ngive a table with rows, or leave data.{name} out"
        )
    valid, rejected, reasons = _accepted(name, marked, accounts)
    accounts.check_fraction(name, marked.num_rows, reasons, [rejected])
    id_name = contract.id_columns(table)[0]
    kept, duplicate = merge_duplicates(
        valid,
        [encode(valid.column(id_name))[0]],
        [valid.column(PLACE).to_numpy()],
        keep,
        table.columns,
    )
    # All rows decide the bounds: an item or user is in no split.
    bounds = {
        column_name: outlier_bounds(Summary.of(kept.column(column_name), column), outliers)
        for column_name, column in table.columns.items()
        if (outliers := getattr(column, "outliers", None)) is not None
    }
    kept, aside, found = treat_outliers(kept, table.columns, bounds)
    for column_name, limits in bounds.items():
        accounts.count_outliers(name, column_name, limits, found[column_name])
    reasons.update(aside.column(REASON).to_pylist())
    accounts.write_set_aside(aside, name)
    kept = kept.sort_by(id_name).combine_chunks()
    accounts.count(
        name,
        read=marked.num_rows,
        kept=kept.num_rows,
        duplicates=int(duplicate.sum()),
        reasons=reasons,
    )
    return kept.select([id_name, *table.columns])


def read_links(
    config: Config, pieces: list[Piece], users: pa.Table | None, accounts: Accounts
) -> pa.Table:
    """Read the table of links; give each link once with its split.

    Args:
        config: `data.social` is there.
        pieces: what there is to read.
        users: the users table; None: whoever is linked is a user.
        accounts: is told of every row.

    Raises:
        DataError: there are no rows, too many are set aside, or none is for training.
    """
    table, quality = config.data.social, config.data.quality
    assert table is not None, "data.social"
    known = {}
    if users is not None and quality.unknown_users == "reject":
        ids = ray.put(users.column("user_id").combine_chunks())
        known = dict.fromkeys(contract.id_columns(table), ids)
    marked = collect(read_marked(pieces, table, known))
    if marked is None:
        raise DataError(
            f"social: {table.path} holds no rows\n"
            "give a table with links, or leave data.social and the social task out"
        )
    valid, rejected, reasons = _accepted("social", marked, accounts)
    accounts.check_fraction("social", marked.num_rows, reasons, [rejected])
    kept, aside, duplicates = clean_links(valid)
    reasons.update(aside.column(REASON).to_pylist())
    accounts.write_set_aside(aside, "social")
    accounts.count(
        "social",
        read=marked.num_rows,
        kept=kept.num_rows,
        duplicates=duplicates,
        reasons=reasons,
    )
    links = split_links(kept, seed=config.run.seed, validation=table.validation, test=table.test)
    counts = Counter(links.column("split").to_pylist())
    accounts.report["links"] = {name: counts[name] for name in SPLITS}
    if not counts["train"]:
        raise DataError(
            f"social: none of {kept.num_rows} links is for training\n"
            "look at dataset/rejected for what was set aside, and at data.social.validation "
            "and test"
        )
    return links


def _accepted(
    name: str, marked: pa.Table, accounts: Accounts
) -> tuple[pa.Table, pa.Table, Counter[str]]:
    """Tell a small table's accepted rows from the others, which are written; and reasons."""
    accepted = pc.is_null(marked.column(REASON))
    rejected = marked.filter(pc.invert(accepted))
    reasons = Counter(rejected.column(REASON).to_pylist())
    check_read(reasons)
    accounts.write_rejected(rejected, name)
    return marked.filter(accepted), rejected, reasons


def all_users(users: pa.Table | None, seen: pa.ChunkedArray) -> pa.Table:
    """Give the users of the table and those with events, sorted; the latter have null columns."""
    ids = pa.table({"user_id": pc.unique(seen)})
    if users is None:
        return ids.sort_by("user_id")
    new = ids.filter(pc.invert(pc.is_in(ids.column("user_id"), users.column("user_id"))))
    both = pa.concat_tables([users, new], promote_options="default")
    return both.sort_by("user_id").combine_chunks()
