"""Tables as a reader gives them, and what `check` makes of them."""

import pyarrow as pa

from mtrec.data.contract import check
from mtrec.dataconfig import InteractionsTable, ItemsTable


def events(**columns):
    """Make a raw table: given columns, the others fine."""
    rows = len(next(iter(columns.values())))
    base = {"user_id": ["u"] * rows, "item_id": ["i"] * rows} | columns
    base |= {"_source": ["f.csv"] * rows, "_place": list(range(rows))}
    return pa.table({n: v if isinstance(v, pa.Array) else pa.array(v) for n, v in base.items()})


def outcome(table, **config):
    """Check a table; give the last configured column's valid values and the reasons."""
    checked = check(table, InteractionsTable(path="x", **config))
    assert checked.valid.num_rows + checked.rejected.num_rows == table.num_rows
    return checked.valid, checked.rejected.column("_reason").to_pylist()


def items(column, values):
    config = ItemsTable(path="x", columns={"genres": column})
    rows = len(values)
    table = pa.table(
        {
            "item_id": [f"i{n}" for n in range(rows)],
            "genres": values,
            "_source": ["f"] * rows,
            "_place": list(range(rows)),
        }
    )
    return check(table, config)
