"""The chain as a user meets it: parity of its three ways out, and the worked example."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from mtrec import artifacts
from mtrec.answers import RankUsers
from mtrec.bundle import load_bundle
from mtrec.chain import run
from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data.dataset import read_histories
from mtrec.data.histories import Histories
from mtrec.modelconfig import label_tasks
from mtrec.recommender import Recommender
from mtrec.revise import add_items
from mtrec.serve.host import ModelHost
from mtrec.serve.routes import Limits, create_fastapi
from mtrec.versions import find_bundle

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.ray


def _with_test_event(histories: Histories, item_index: np.ndarray) -> Histories:
    """Append one test event to every user, so that evaluation's history is all the others."""
    users = len(histories)
    where = histories.offsets[1:]
    return replace(
        histories,
        offsets=histories.offsets + np.arange(users + 1),
        item_index=np.insert(histories.item_index, where, item_index),
        timestamp=np.insert(histories.timestamp, where, np.nan),
        split=np.insert(np.zeros_like(histories.split), where, 2),
        numbers={name: np.insert(v, where, np.nan) for name, v in histories.numbers.items()},
        labels={name: np.insert(v, where, 1.0) for name, v in histories.labels.items()},
    )


@pytest.fixture(scope="module")
def set_run(
    plant: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory, ray_local: None
) -> tuple[Config, Path]:
    """Run the chain with the set encoder, all extra terms, friends and a refit."""
    folder = tmp_path_factory.mktemp("set")
    term = {"amount": "rating", "top": 8, "reg": [5.0], "scales": [1.0, 4.0]}
    config = plant(
        folder,
        friends=3,
        model={
            "embedding_dim": 16,
            "text_dim": 16,
            "history": {"kind": "set", "length": 30},
            "item_item": term,
            "ials": {"tried": [{"factors": 4, "alpha": 5.0, "reg": 1.0}], "scales": [1.0, 4.0]},
            "factors": {"column": "rating", "rank": 2, "draws": 4, "length": 9},
        },
        train={"epochs": 3, "refit": "validation", "num_workers": 0},
    )
    run(config)
    return config, folder / "run"


def test_a_refitted_model_is_judged_on_test_alone(set_run: tuple[Config, Path]) -> None:
    _, workdir = set_run
    bundle = load_bundle(str(workdir / "bundles"))
    assert bundle.fitted_on == ["train", "validation"]
    assert bundle.item_item is not None
    assert bundle.item_item.amount is not None
    assert bundle.ials is not None
    assert bundle.factors is not None
    assert set(bundle.factors.weights) <= {"rating", "like"}
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert report["bundle"]["fitted_on"] == ["train", "validation"]
    assert 0 < report["model"]["retrieval"]["ndcg@10"] < 1


def test_friends_are_found_in_evaluation_batch_and_http(set_run: tuple[Config, Path]) -> None:
    config, workdir = set_run
    recommender = Recommender.load(str(workdir / "bundles"))
    links = pq.read_table(workdir / "dataset" / "social.parquet").to_pandas()
    linked = {(a, b) for a, b in zip(links["user_id"], links["friend_id"], strict=True)}
    linked |= {(b, a) for a, b in linked}
    batch = pq.read_table(sorted((workdir / "friends").glob("*.parquet"))).to_pandas()

    # batch: everybody has a full list of users who are neither themselves nor friends already
    pairs = set(zip(batch["user_id"], batch["friend_id"], strict=True))
    assert set(batch["user_id"]) == {f"u{n:05d}" for n in range(60)}
    assert batch.groupby("user_id")["rank"].apply(list).map(len).eq(config.score.k).all()
    assert not pairs & linked
    assert not any(a == b for a, b in pairs)
    # HTTP: the same list by id, and by the same events in the request
    host = ModelHost(lambda _: recommender)
    host.open(str(workdir / "bundles"))
    client = TestClient(create_fastapi(host, Limits(1 << 20, 256, 1000)))
    histories = read_histories(str(workdir / "dataset"))
    ids = recommender.item_ids(histories.item_index)
    for user in (0, 17, 59):
        user_id = histories.user_ids[user]
        rows = batch[batch["user_id"] == user_id].sort_values("rank")
        history = [
            {"item_id": ids[at], "rating": float(histories.numbers["rating"][at])}
            for at in range(histories.offsets[user], histories.offsets[user + 1])
        ]
        for body in ({"user_id": user_id}, {"user_id": user_id, "history": history}):
            answer = client.post("/v1/friends", json=body).json()["friends"]
            assert [friend["user_id"] for friend in answer] == rows["friend_id"].tolist()
            found = [friend["score"] for friend in answer]
            np.testing.assert_allclose(found, rows["score"], rtol=1e-5)
    # evaluation: planted friends of friends are found, far above chance (10 of 59 users: .17)
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert report["model"]["friends"]["recall@10"] > 0.3
    assert {"common_neighbours", "adamic_adar"} <= set(report["baselines"])
    assert report["protocol"]["links"]["test"] > 0
    assert set(report["slices"]["friends"]) == {"links_of_user", "links_of_friend"}
    assert "friends" in (workdir / "report" / "report.html").read_text()
    assert run(config).done == {}


@pytest.mark.parametrize("which", ["planted_run", "set_run"])
def test_evaluation_batch_and_http_agree(which: str, request: pytest.FixtureRequest) -> None:
    config, workdir = request.getfixturevalue(which)
    bundles, k = str(workdir / "bundles"), config.score.k
    tasks = [task.name for task in label_tasks(config.tasks)]
    # batch: every user's list, as the score stage wrote it
    batch = pq.read_table(sorted((workdir / "predictions").glob("*.parquet"))).to_pandas()
    # HTTP: the same events in the request
    recommender = Recommender.load(bundles)
    assert recommender.bundle.item_item is not None, "what pairs of items say is part of it"
    histories = read_histories(str(workdir / "dataset"))
    ids = recommender.item_ids(histories.item_index)
    host = ModelHost(lambda _: recommender)
    host.open(bundles)
    client = TestClient(create_fastapi(host, Limits(1 << 20, 256, 1000)))
    # evaluation: the same events before a test event of the item that batch put first
    first = batch[batch["rank"] == 1].set_index("user_id")["item_id"]
    positions = {
        item: at for at, item in enumerate(recommender.bundle.items["item_id"].to_pylist(), 2)
    }
    item_index = np.array([positions[first[user]] for user in histories.user_ids], np.int32)
    popular = {"test": recommender.bundle.popular}
    table: pa.Table = RankUsers(bundles, config, {"test": None}, popular, "cpu").answer(
        _with_test_event(histories, item_index).to_table()
    )
    evaluated = {row["user_id"]: row for row in table.to_pylist()}
    for user in range(0, len(histories), 7):
        user_id = histories.user_ids[user]
        rows = batch[batch["user_id"] == user_id].sort_values("rank")
        events = range(histories.offsets[user], histories.offsets[user + 1])
        history = [
            {
                "item_id": ids[event],
                "rating": float(histories.numbers["rating"][event]),
                "timestamp": float(histories.timestamp[event]),
            }
            for event in events
        ]
        answer = client.post(
            "/v1/recommend", json={"user_id": user_id, "history": history, "k": k}
        ).json()
        listed = answer["recommendations"]
        assert [entry["item_id"] for entry in listed] == rows["item_id"].tolist()
        np.testing.assert_allclose(
            [entry["score"] for entry in listed], rows["score"], rtol=1e-5, atol=0
        )
        lists = evaluated[user_id]["test_items"][:k]
        assert recommender.item_ids(np.array(lists)) == rows["item_id"].tolist()
        for task in tasks:
            values = [entry["tasks"][task] for entry in listed]
            np.testing.assert_allclose(values, rows[task], rtol=1e-5)
            predicted = evaluated[user_id][f"test_task_{task}"][0]
            assert predicted == pytest.approx(rows[task].iloc[0], rel=1e-5)


def test_http_by_user_id_equals_http_by_history(planted_run: tuple[Config, Path]) -> None:
    _, workdir = planted_run
    recommender = Recommender.load(str(workdir / "bundles"))
    interactions = pq.read_table(workdir / "dataset" / "interactions").to_pandas()
    user_id = interactions["user_id"].iloc[0]
    rows = interactions[interactions["user_id"] == user_id].sort_values("timestamp")
    history = [
        {"item_id": item, "rating": rating, "timestamp": time}
        for item, rating, time in zip(
            rows["item_id"], rows["rating"], rows["timestamp"], strict=True
        )
    ]
    by_id, by_history = recommender.recommend(
        [{"user_id": user_id}, {"user_id": user_id, "history": history}]
    )
    scores = [
        [entry["score"] for entry in answer["recommendations"]] for answer in (by_id, by_history)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_added_items_come_up_under_load_for_users_whose_history_resembles_them(
    copied_run: Config, tmp_path: Path
) -> None:
    """Over HTTP: a pointer moves to the version with a hundred new items while requests come in."""
    groups = ["space", "garden"]
    rows = [
        {"item_id": f"new-{at:03d}", "title": f"The {groups[at % 2]} story {900 + at}"}
        | {"genres": groups[at % 2], "price": at}
        for at in range(100)
    ]
    file = tmp_path / "new.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    bundles = f"{copied_run.run.workdir}/bundles"
    old = load_bundle(bundles)
    titles = {item["item_id"]: item["title"] for item in old.items.to_pylist()}
    histories = {
        group: [{"item_id": item, "rating": 5} for item in titles if group in titles[item]][:4]
        for group in groups
    }
    host = ModelHost(lambda path: Recommender.load(path, threads=1))
    host.open(bundles)
    host.follow(find_bundle, 0.05)
    client = TestClient(create_fastapi(host, Limits(1 << 20, 8, 50)))
    try:
        done = add_items(bundles, str(file))
        versions = set()
        while done.version not in versions:
            answer = client.post("/v1/recommend", json={"user_id": "u00001"})
            assert answer.status_code == 200
            versions.add(answer.json()["model_version"])
        for group, history in histories.items():
            body = {"history": history, "k": 10, "filter": {"price": {"max": 99}}}
            listed = client.post("/v1/recommend", json=body).json()["recommendations"]
            new = [entry["item_id"] for entry in listed if entry["item_id"].startswith("new-")]
            own = [item for item in new if groups[int(item[4:]) % 2] == group]
            assert len(new) >= 3, listed
            assert len(own) >= 0.8 * len(new), (group, listed)
            alike = {"history": history, "k": 5, "diversity": 0.9}
            spread = client.post("/v1/recommend", json=alike).json()["recommendations"]
            assert [e["item_id"] for e in spread] != [e["item_id"] for e in listed[:5]]
    finally:
        host.close()
    assert versions <= {old.version, done.version}


@pytest.mark.slow
def test_time_and_clipped_numbers_mean_the_same_in_a_request_as_in_the_log(
    plant: Callable[..., Config], tmp_path: Path
) -> None:
    planted = plant(tmp_path, train={"epochs": 1, "num_workers": 0})
    tree = planted.model_dump(mode="json", exclude_unset=True)
    columns = tree["data"]["interactions"]["columns"]
    columns["hour"] = {"kind": "time", "part": "hour"}
    columns["weekday"] = {"kind": "time", "part": "weekday", "utc_offset_h": -5}
    columns["rating"]["outliers"] = {"method": "zscore", "threshold": 1.0}
    config = parse_config(tree)
    run(config, stages=("prepare", "embed", "train"))
    workdir = Path(config.run.workdir)
    limits = json.loads((workdir / "dataset" / "report.json").read_text())["outliers"]
    assert limits["interactions"]["rating"]["found"] > 0
    # The log as it came, outliers and all.
    log = pd.read_csv(tmp_path / "data" / "interactions.csv")
    recommender = Recommender.load(str(workdir / "bundles"))
    assert {"hour", "weekday"} <= set(recommender.bundle.sizes.context_categories)
    for user_id, events in list(log.groupby("user_id"))[:5]:
        told = events.sort_values("timestamp")[["item_id", "rating", "timestamp"]]
        by_id, by_history = recommender.recommend(
            [
                {"user_id": user_id, "context": {"hour": 7}},
                {"user_id": user_id, "history": told.to_dict("records"), "context": {"hour": 7}},
            ]
        )
        assert by_id["recommendations"] == [
            {
                **entry,
                "score": pytest.approx(entry["score"], rel=1e-5),
                "tasks": pytest.approx(entry["tasks"], rel=1e-5),
            }
            for entry in by_history["recommendations"]
        ]


@pytest.mark.slow
def test_the_worked_example_of_four_ratings_in_chinese(ray_address: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "jobs" / "configs", tmp_path / "jobs" / "configs")
    command = [sys.executable, "-c", "from mtrec.cli import main; main()", "run"]
    done = subprocess.run(
        [
            *(*command, "--config", "jobs/configs/worked-example.yaml"),
            *("--set", "train.num_workers=0", "--address", ray_address),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "does not know 100% of the tokens" in done.stderr
    assert "multilingual" in done.stderr
    workdir = tmp_path / "runs" / "worked-example"
    manifest = json.loads((workdir / "embeddings" / "manifest.json").read_text())
    assert manifest["details"]["encoder"]["dim"] == 384
    # everybody has touched all but one of the three items at most
    listed = pq.read_table(sorted((workdir / "predictions").glob("*.parquet"))).to_pylist()
    assert {(row["user_id"], row["item_id"]) for row in listed} == {("u1", "p3"), ("u2", "p2")}
    answer = Recommender.load(str(workdir / "bundles")).recommend(
        [{"user_id": "u1", "include_seen": True}]
    )[0]
    scores = [entry["score"] for entry in answer["recommendations"]]
    assert answer["user_id"] == "u1"
    assert {entry["item_id"] for entry in answer["recommendations"]} == {"p1", "p2", "p3"}
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


@pytest.mark.slow
def test_neither_blocks_nor_workers_change_what_a_run_gives(
    planted_run: tuple[Config, Path], tmp_path: Path
) -> None:
    config, workdir = planted_run
    tree = config.model_dump(mode="json", exclude_unset=True)
    # The same log in three files, with as many blocks, other partitions, and two train workers.
    log = workdir.parent / "data" / "interactions.csv"
    events = pd.read_csv(log, dtype=str, keep_default_na=False)
    (tmp_path / "events").mkdir()
    for part, start in enumerate((0, 100, 1000)):
        stop = (100, 1000, len(events))[part]
        events.iloc[start:stop].to_csv(tmp_path / "events" / f"{part}.csv", index=False)
    tree["data"]["interactions"]["path"] = str(tmp_path / "events")
    tree["run"]["workdir"] = str(tmp_path / "run")
    tree["ray"]["partitions"] = 3
    tree["train"]["num_workers"] = 2
    other = run(parse_config(tree), stages=("prepare", "embed", "train", "evaluate")).paths
    contents = [
        {
            name: entry["sha256"]
            for name, entry in artifacts.read_manifest(place, "dataset").files.items()
            # These two name the files that were read.
            if name != "report.json" and not name.startswith("rejected/")
        }
        for place in (str(workdir / "dataset"), other.dataset)
    ]
    assert contents[0] == contents[1]
    reports = [
        json.loads(Path(place, "report.json").read_text())["model"]
        for place in (workdir / "report", other.report)
    ]
    assert reports[0].keys() == {task.name for task in config.tasks}
    for task, metrics in reports[0].items():
        assert reports[1][task] == pytest.approx(metrics, rel=1e-3, abs=1e-3), task
