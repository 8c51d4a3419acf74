"""Data of unusual shape through the whole chain: every figure is a number or is left out."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec.chain import run
from mtrec.config import Config
from mtrec.configfile import load_config, parse_config
from mtrec.recommender import Recommender
from mtrec.stages import STAGES

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

RATING = {"kind": "number", "min": 1, "max": 5, "missing": "keep"}
NEXT = {"name": "next", "kind": "retrieval"}
STARS = {"name": "stars", "kind": "regression", "label": "rating", "min": 1, "max": 5}
LIKE = {"name": "like", "kind": "binary", "label": "rating >= 4"}
SET = {"kind": "set", "length": 8}
MMOE = {"kind": "mmoe", "num_experts": 2, "hidden": [8]}
PLE = {"kind": "ple", "hidden": [8]}

# What a worker says where a figure was divided by nothing.
_WARNING = re.compile(
    r"^.*(?:RuntimeWarning|UserWarning: .*\b(?:nan|std|degrees)\b).*$", re.M | re.I
)


@pytest.fixture(autouse=True)
def no_numeric_warnings(ray_local: None) -> Iterator[None]:
    """Fail if a worker of Ray warns of NaN or of a division; here warnings are errors anyway."""
    import ray

    node = ray._private.worker._global_node
    assert node is not None
    logs = Path(node.get_session_dir_path()) / "logs"
    before = {path: path.stat().st_size for path in logs.glob("worker-*.err")}
    yield
    said = ""
    for path in logs.glob("worker-*.err"):
        said += path.read_bytes()[before.get(path, 0) :].decode(errors="replace")
    assert _WARNING.findall(said) == []


def write_csv(folder: Path, name: str, header: str, rows: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows, ""]), encoding="utf-8")


def shape(
    folder: Path,
    *,
    users: int = 6,
    items: int = 8,
    ratings: str = "varied",
    items_table: bool = True,
    users_table: bool = True,
    text: bool = True,
    tasks: tuple[dict[str, Any], ...] = (NEXT, STARS, LIKE),
    history: dict[str, Any] | None = None,
    experts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write tables of a shape and give the configuration tree that reads them."""
    events = [
        (user, (user + step) % items) for user in range(users) for step in range(min(5, items))
    ]
    stars = {"varied": lambda u, i: 1 + (3 * u + i) % 5, "equal": lambda u, i: 4}
    given = "" if ratings == "none" else ",rating"
    write_csv(
        folder,
        "events.csv",
        f"user_id,item_id{given}",
        [f"u{u},i{i}" + (f",{stars[ratings](u, i)}" if given else "") for u, i in events],
    )
    write_csv(
        folder,
        "items.csv",
        "item_id,title,price",
        [f"i{n},Story {n} 毛衣,{10 * n}" for n in range(items)],
    )
    write_csv(folder, "users.csv", "user_id,age", [f"u{n},{20 + n}" for n in range(users)])
    data: dict[str, Any] = {"root": str(folder), "interactions": {"path": "events.csv"}}
    if given:
        data["interactions"]["columns"] = {"rating": RATING}
    if items_table:
        columns = {"price": {"kind": "number"}}
        columns |= {"title": {"kind": "text"}} if text else {}
        data["items"] = {"path": "items.csv", "columns": columns}
    if users_table:
        data["users"] = {"path": "users.csv", "columns": {"age": {"kind": "number"}}}
    return {
        "run": {"workdir": str(folder / "run")},
        "data": data,
        "text": {
            "encoder": "hashing",
            "dimension": 16,
            "item_template": "{title}" if text and items_table else None,
        },
        "tasks": list(tasks),
        "model": {
            "embedding_dim": 8,
            "history": history or {"length": 8},
            "experts": experts or {"hidden": [8]},
        },
        "train": {"epochs": 2, "batch_size": 4, "warmup_steps": 0, "num_workers": 0},
        "evaluate": {"bootstrap_samples": 100},
        "score": {"k": 3},
        "ray": {"num_cpus": 4},
    }


def numbers(value: object) -> Iterator[float]:
    """Yield every number of a report."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def run_and_check(config: Config) -> None:
    """Run the whole chain and check what every shape must give."""
    outcome = run(config)
    assert list(outcome.done) == list(STAGES)
    workdir = Path(config.run.workdir)
    report: dict[str, Any] = json.loads((workdir / "report" / "report.json").read_text())
    assert all(math.isfinite(number) for number in numbers(report))
    assert report["curves"]
    listed = pq.read_table(sorted((workdir / "predictions").glob("*.parquet"))).to_pandas()
    ranking = [task.name for task in config.tasks if task.kind != "retrieval"]
    assert list(listed.columns) == ["user_id", "rank", "item_id", "score", *ranking]
    assert np.isfinite(listed[["score", *ranking]].to_numpy(dtype=float)).all()
    assert listed["score"].between(0, 1).all()
    seen = pq.read_table(workdir / "dataset" / "interactions").to_pandas()
    catalogue = pq.read_table(workdir / "dataset" / "items.parquet").num_rows
    touched = seen.groupby("user_id")["item_id"].nunique()
    expected = {u: min(config.score.k, catalogue - n) for u, n in touched.items() if n < catalogue}
    assert listed.groupby("user_id").size().to_dict() == expected


SHAPES: dict[str, dict[str, Any]] = {
    "no text": {"text": False},
    "clicks only, and no tables": {
        "ratings": "none", "tasks": (NEXT,), "items_table": False, "users_table": False,
    },
    "one user": {"users": 1},
    "one item": {"items": 1},
    "every rating equal, and no users table": {"ratings": "equal", "users_table": False},
    "a set of events, MMoE, one ranking task": {
        "history": SET, "experts": MMOE, "tasks": (NEXT, STARS),
    },
    "a set of events, PLE, no ranking task": {
        "history": SET, "experts": PLE, "tasks": (NEXT,),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_runs_from_its_configuration(name: str, tmp_path: Path) -> None:
    run_and_check(parse_config(shape(tmp_path, **SHAPES[name])))


def test_the_worked_example_of_texts_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changes = [
        f"run.workdir={tmp_path / 'run'}",
        "text.encoder=hashing",
        "train.epochs=4",
        "train.num_workers=0",
    ]
    config = load_config(ROOT / "jobs" / "configs" / "worked-example-text.yaml", changes)
    run_and_check(config)
    users, items = (
        pq.read_table(tmp_path / "run" / "dataset" / f"{name}.parquet").to_pylist()
        for name in ("users", "items")
    )
    assert (users[0]["interest"], users[0]["habit"]) == ("喜欢购物", "喜欢打折")
    assert (users[0]["age"], users[0]["is_member"]) == (30, 1)
    assert users[0]["text"] == "喜欢购物, 喜欢打折"
    assert (items[0]["name"], items[0]["offer"]) == ("iPhone 13", "限时优惠")
    assert (items[0]["price"], items[0]["in_stock"]) == (10000, 0)
    assert items[0]["text"] == "iPhone 13, 限时优惠"
    recommender = Recommender.load(str(tmp_path / "run" / "bundles"))
    assert recommender.bundle.items.column("name")[0].as_py() == "iPhone 13"
    (entry,) = recommender.score({"user_id": "u1"}, ["p1"])
    assert 1 <= entry["tasks"]["rating"] <= 5
    assert 0 < entry["tasks"]["click"] < 1
