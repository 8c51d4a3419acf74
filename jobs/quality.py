"""Measure recommendation quality: every row of the README's table from one command.

    python jobs/quality.py --out runs/quality                # the rows on MovieLens-100K
    python jobs/quality.py --data DIR --out runs/quality     # all rows
    python jobs/quality.py --data DIR --rows P5,C1 --seeds 5 --out runs/quality

MovieLens-100K is fetched. DIR may hold `hetrec2011-lastfm-2k/` and `ml-1m/` (both from
grouplens.org) or `ml-1m-sequences/`, and `ml-100k/` as RecBole carries it; rows whose data is not
there are skipped, aloud. Each row is a configuration of `jobs/configs/quality/`, run once a seed:
other seeds mean another split where it is random, other initial weights, another order of batches.

OUT gets `results.json`, `results.md`, `quality.md` (the README's table), the shared text vectors,
and for each row and seed a folder with its data, its whole run and `result.json`. After an
interruption the same command goes on: what has a `result.json` of the same configuration is read,
what was under way resumes from its last checkpoint. Once it has that file, a seed's `data/` and
`run/` may be deleted; delete all of its folder to run it anew.

`--results DIR` reads what somebody measured with the same configuration and seed, and adds what is
measured now. The figures behind the README's table lie in `jobs/results/quality`.

M1 also trains each task alone, beside the runs of P3 and P8 (`twins.json` is its result). C2 trains
one model on everybody and ten without a tenth of the users each, every one with its own
`result.json`: `--folds 3` stops after three, and the table says so.

The rows A take parts out of the models of other rows, one at a time, and show on validation what
each is worth; every part has a result of its own.

The text control: `--text hashing` puts hashed words in the language model's place. Give it an OUT
of its own to keep both tables.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from _results import Results, command_line
from _rows import ROWS, Row, chosen_rows
from _running import NUM_FOLDS, RUNNERS, DataAbsentError, Options, say
from _seeds import beside_line, goal_line, join, part_line
from _tables import Tables, add_result

from mtrec.cli import run_shell
from mtrec.errors import ConfigError, DataError
from mtrec.runlog import configure_logging


def main() -> int:
    """Run what was asked for and is not done, then write the tables."""
    epilog = (__doc__ or "").partition("\n")[2]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"{epilog}\nRows:\n" + "\n".join(f"  {r.name:<5}{r.protocol}" for r in ROWS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--rows", help="such as P3,P12; default: all")
    parser.add_argument("--seeds", type=int, metavar="N", help="default: as the README's table")
    parser.add_argument(
        "--folds", type=int, default=NUM_FOLDS, metavar="N",
        help=f"of the {NUM_FOLDS} folds of users of C2 only the first N",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="receives tables, runs, vectors")
    parser.add_argument(
        "--results", type=Path, metavar="DIR",
        help="take results of the same configuration and seed from there, and add new ones",
    )  # fmt: skip
    parser.add_argument("--text", choices=("hashing",), help="hashed words, no language model")
    parser.add_argument(
        *("--set", "-s"), action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a key of all rows, such as train.epochs=3",
    )  # fmt: skip
    given = parser.parse_args()
    if given.seeds is not None and given.seeds < 1:
        parser.error("--seeds must be at least 1")
    if not 1 <= given.folds <= NUM_FOLDS:
        parser.error(f"--folds must be 1 to {NUM_FOLDS}")
    try:
        rows = chosen_rows(given.rows)
    except ConfigError as error:
        parser.error(str(error))
    configure_logging()
    # Ray's workers have working folders of their own.
    out = given.out.resolve()
    options = Options(
        data=given.data,
        out=out,
        seeds=given.seeds,
        text=given.text,
        overrides=tuple(given.overrides),
        folds=given.folds,
        results=given.results,
    )
    measured = measure(rows, options)
    if not measured:
        raise DataError("no row could be run\ngive a folder with the data sets: --data DIR")
    print((out / "quality.md").read_text(encoding="utf-8"))
    return 0


def measure(rows: Sequence[Row], options: Options) -> list[str]:
    """Run rows, writing the tables anew after each; give the names of those that ran."""
    results = Results(options.out, command_line())
    tables = Tables(options.out, command_line())
    measured = []
    for row in rows:
        try:
            found = [
                RUNNERS[row.kind](row, seed, options)
                for seed in range(options.seeds if options.seeds is not None else row.seeds)
            ]
        except DataAbsentError as error:
            say(f"{row.name}: skipped; {error}")
            continue
        reports = [result["report"] for result in found]
        protocol = ", ".join([row.protocol, *found[0].get("partly", [])])
        for goal in row.goals:
            joined = join(goal, reports)
            if joined is None:
                say(f"{row.name}: the report has no {goal.metric} of {goal.task}")
            else:
                add_result(results, row.name, joined)
                if row.kind == "parts":
                    tables.add_part(part_line(row.name, protocol, joined))
                else:
                    tables.add_goal(goal_line(row.name, protocol, joined))
        measured.append(row.name)
        if row.kind == "parts":
            continue
        alike = (row.config, row.kind)
        sharing = [other.name for other in rows if (other.config, other.kind) == alike]
        if row.name == sharing[0]:
            train_s = [r["seconds"]["train"] for r in found if "train" in r["seconds"]]
            tables.add_beside(beside_line(", ".join(sharing), reports, train_s))
    return measured


if __name__ == "__main__":
    sys.exit(run_shell(main, verbose=True))
