import csv
import json
import logging
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtrec import storage
from mtrec.configfile import load_config, parse_config
from mtrec.data import marked as marked_module
from mtrec.data import pipeline
from mtrec.data.features import FeatureTransform
from mtrec.data.histories import Histories
from mtrec.data.pipeline import input_fingerprint, prepare
from mtrec.data.sources import cache_folder, movielens_100k, planted
from mtrec.errors import DataError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.fixture
def tree(tmp_path):
    return planted(tmp_path / "data", num_users=12, num_items=10, events_per_user=6)


def run(tree, target):
    """Prepare a tree's configuration; give the artifact's folder and its report."""
    prepare(parse_config(tree), path=str(target), key="key")
    return target, json.loads((target / "report.json").read_text())


def rows(target, name):
    return pq.read_table(target / name).to_pylist()


def contents(target):
    """Give the bytes of all files but the manifest, which has a new id each time."""
    names = [name for name in storage.list_files(str(target)) if name != "manifest.json"]
    return {name: (target / name).read_bytes() for name in names}


def append(tree, table, text):
    with open(Path(tree["data"]["root"]) / f"{table}.csv", "ab") as file:
        file.write(text)


def test_the_artifact_holds_what_the_tables_say(tree, tmp_path):
    target, report = run(tree, tmp_path / "out")
    assert report["tables"]["interactions"] == {
        **{"read": 72, "kept": 72, "rejected": 0, "duplicates": 0},
        "reasons": {},
    }
    assert report["split"] == {"train": 48, "validation": 12, "test": 12}
    assert (report["users"], report["items"]) == (12, 10)
    histories = Histories.from_table(pq.read_table(target / "histories"))
    items = pq.read_table(target / "items.parquet")
    assert items["item_index"].to_pylist() == list(range(2, 12))
    interactions = rows(target, "interactions")
    names = items["item_id"].to_pylist()
    assert [names[n - 2] for n in histories.item_index] == [r["item_id"] for r in interactions]
    counts = np.bincount(histories.item_index[histories.split == 0], minlength=12)[2:]
    assert items["train_count"].to_pylist() == counts.tolist()
    assert items["text"][0].as_py() == "The space story 0 | space"


def test_a_time_that_is_not_used_and_rows_set_aside_are_told(tree, tmp_path, caplog):
    append(tree, "interactions", b"u00001,i00001,many,1000000\n")
    log = pd.read_csv(Path(tree["data"]["root"]) / "interactions.csv", dtype=str)
    log.to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    tree["data"]["interactions"] |= {"path": str(tmp_path / "log.jsonl"), "id_type": "string"}
    del tree["data"]["interactions"]["timestamp"]
    with caplog.at_level(logging.INFO, logger="mtrec"):
        run(tree, tmp_path / "out")
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told[0].startswith(
        "interactions: 1 of 73 rows are set aside: 1 x rating is not a number; each is in "
    )
    assert 'the column "timestamp" looks like a time and is not used' in told[1]
    assert any("duplicates=0" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("rating >= 1", 'task fan: labels "rating >= 1": all are 1 in training'),
        ("rating >= 3", None),
    ],
)
def test_labels_that_are_all_alike_are_told(tree, tmp_path, caplog, label, told):
    tree["tasks"] = [*tree.get("tasks", []), {"name": "fan", "kind": "binary", "label": label}]
    with caplog.at_level(logging.INFO, logger="mtrec"):
        _, report = run(tree, tmp_path / "out")
    warnings = [r.message for r in caplog.records if "nothing to learn" in r.message]
    assert [line.partition(",")[0] for line in warnings] == ([told] if told else [])
    assert report["labels"]["fan"] == ([1.0, 1.0] if told else [0.0, 1.0])


def test_the_transform_was_fitted_on_training_events_only(tree, tmp_path):
    target, _ = run(tree, tmp_path / "out")
    transform = FeatureTransform.from_json(json.loads((target / "transform.json").read_text()))
    training = [r for r in rows(target, "interactions") if r["split"] == "train"]
    ratings = np.array([r["rating"] for r in training])
    assert transform.event_scaling["rating"] == pytest.approx((ratings.mean(), ratings.std()))
    trained = {r["item_id"] for r in training}
    prices = [r["price"] for r in rows(target, "items.parquet") if r["item_id"] in trained]
    assert transform.items["price"].offset == pytest.approx(np.mean(prices))


def test_items_and_users_without_training_events_decide_nothing(tree, tmp_path):
    plain, _ = run(tree, tmp_path / "plain")
    append(tree, "items", b"i99998,Met in test,late,5000\ni99999,Never met,lonely,70000\n")
    append(tree, "interactions", b"u00000,i99998,5,2000000000\n")
    append(tree, "users", b"u99999,1000,X\n")
    target, report = run(tree, tmp_path / "out")
    before, after = (
        FeatureTransform.from_json(json.loads((folder / "transform.json").read_text()))
        for folder in (plain, target)
    )
    assert (report["items"], report["users"]) == (12, 13)
    assert after.items["genres"].vocabulary.values == before.items["genres"].vocabulary.values
    assert after.items["price"] == before.items["price"]
    assert after.users == before.users


def test_every_kind_of_bad_row_is_set_aside_with_source_text_and_reason(tree, tmp_path):
    append(tree, "interactions", b"u00000,i00001,six,1\nu00000\nu00000,nothing,3,1\n,i00001,3,1\n")
    append(tree, "interactions", b"nobody,i00001,3,1\nu\xff,i00001,3,1\nu00000,i00001,9,1\n")
    target, report = run(tree, tmp_path / "out")
    found = {(r["row"], r["reason"]) for r in rows(target, "rejected")}
    assert found == {
        ("u00000,i00001,six,1", "rating is not a number"),
        ("u00000", "wrong number of fields, expected 4"),
        ("u00000,nothing,3,1", "item_id is not in the items table, or was set aside there"),
        (",i00001,3,1", "user_id is empty"),
        ("nobody,i00001,3,1", "user_id is not in the users table, or was set aside there"),
        ("u\\xff,i00001,3,1", "row does not decode as utf-8"),
        ("u00000,i00001,9,1", "rating is above 5"),
    }
    assert {r["source"] for r in rows(target, "rejected")} == {"interactions.csv"}
    counts = report["tables"]["interactions"]
    assert (counts["read"], counts["kept"], counts["rejected"]) == (79, 72, 7)
    assert counts["reasons"]["user_id is empty"] == 1


def test_unknown_references_may_be_kept(tree, tmp_path):
    tree["data"]["quality"] = {"unknown_items": "keep", "unknown_users": "keep"}
    append(tree, "interactions", b"nobody,nothing,3,1\nnobody,i00001,3,2\n")
    target, report = run(tree, tmp_path / "out")
    assert report["tables"]["interactions"]["kept"] == 74
    histories = Histories.from_table(pq.read_table(target / "histories"))
    assert histories.user_ids[0] == "nobody"
    assert histories.item_index[:2].tolist() == [1, 3]
    user = rows(target, "users.parquet")[0]
    ages = [r["age"] for r in rows(target, "users.parquet")[1:]]
    # Like every user, this one has a training event; the empty age becomes the others' mean.
    assert user["age"] == pytest.approx(np.mean(ages))


def test_a_global_time_split_cuts_where_the_shares_say(tree, tmp_path):
    tree["data"]["split"] = {"method": "global_time", "validation": 0.2, "test": 0.1}
    target, report = run(tree, tmp_path / "out")
    events = rows(target, "interactions")
    times = sorted(r["timestamp"] for r in events)
    cuts = report["global_time"]
    assert cuts["validation_from"] == pytest.approx(np.quantile(times, 0.7))
    assert cuts["test_from"] == pytest.approx(np.quantile(times, 0.9))
    for event in events:
        expected = ["train", "validation", "test"][
            (event["timestamp"] >= cuts["validation_from"])
            + (event["timestamp"] >= cuts["test_from"])
        ]
        assert event["split"] == expected
    assert report["split"]["test"] == sum(t >= cuts["test_from"] for t in times)


def test_given_moments_cut_the_log_and_the_gap_is_accounted_for(tree, tmp_path):
    events = rows(run(tree, tmp_path / "plain")[0], "interactions")
    times = sorted({r["timestamp"] for r in events})
    moments = {"validation_from": times[-6], "test_from": times[-3], "gap_s": times[-3] - times[-4]}
    tree["data"]["split"] = {"method": "global_time", **moments}
    target, report = run(tree, tmp_path / "out")
    left = rows(target, "interactions")
    aside = rows(target, "rejected")
    gap = moments["gap_s"]
    gone = [t for t in times if any(c - gap <= t < c for c in (times[-6], times[-3]))]
    assert len(aside) == len(events) - len(left) == sum(r["timestamp"] in gone for r in events)
    assert {r["reason"] for r in aside} == {"timestamp is in the gap before validation or test"}
    assert {r["source"] for r in aside} == {"interactions.csv"}
    counts = report["tables"]["interactions"]
    assert counts["read"] == counts["kept"] + counts["rejected"] + counts["duplicates"]
    assert counts["rejected"] == len(aside)


def test_outliers_of_interactions_and_items_are_set_aside_clipped_and_counted(tree, tmp_path):
    columns = tree["data"]["items"]["columns"]
    columns["price"]["outliers"] = {"method": "iqr", "action": "clip"}
    rating = {"kind": "number", "missing": "mean"}
    rating["outliers"] = {"method": "zscore", "threshold": 2.0, "action": "reject"}
    tree["data"]["interactions"]["columns"]["rating"] = rating
    tree["tasks"] = [task for task in tree["tasks"] if task["kind"] == "retrieval"]
    tree["text"] = {}
    append(tree, "items", b"dear,dear,books,99999\n")
    append(tree, "interactions", b"u00000,dear,1000,1\nu00001,dear,3,2\n")
    target, report = run(tree, tmp_path / "out")

    found = report["outliers"]
    assert found["items"]["price"]["found"] == 1
    prices = {r["item_id"]: r["price"] for r in rows(target, "items.parquet")}
    assert prices["dear"] == found["items"]["price"]["high"] == max(prices.values())
    transform = FeatureTransform.from_json(json.loads((target / "transform.json").read_text()))
    assert transform.items["price"].bounds == (
        found["items"]["price"]["low"],
        found["items"]["price"]["high"],
    )
    aside = rows(target, "rejected")
    assert [r["reason"] for r in aside] == ["rating is an outlier"]
    assert '"rating": 1000.0' in aside[0]["row"]
    assert found["interactions"]["rating"]["found"] == 1
    assert 1000.0 not in [r["rating"] for r in rows(target, "interactions")]
    # The statistics are those of what is left.
    training = [r["rating"] for r in rows(target, "interactions") if r["split"] == "train"]
    assert transform.event_scaling["rating"][0] == pytest.approx(np.mean(training))


@pytest.mark.parametrize(("cold", "kind"), [("107", "int64"), ("B1", "string"), ("007", "string")])
def test_ids_are_integers_only_if_those_of_the_items_table_are(tree, tmp_path, cold, kind):
    """Parquet says that all ids of events are integers; a cold item says otherwise, or not."""
    root = Path(tree["data"]["root"])
    events = pd.read_csv(root / "interactions.csv")
    for name in ("item_id", "user_id"):
        events[name] = events[name].str[1:].astype("int64")
    events.to_parquet(root / "events.parquet")
    tree["data"]["interactions"]["path"] = "events.parquet"
    tree["data"]["users"] = None
    items = pd.read_csv(root / "items.csv", dtype=str)
    items["item_id"] = items["item_id"].str[1:].astype(int).astype(str)
    items.loc[len(items)] = [cold, *items.iloc[0, 1:]]
    items.to_csv(root / "items.csv", index=False)
    assert run(tree, tmp_path / "out")[1]["id_types"] == {"user_id": "int64", "item_id": kind}


def test_too_many_bad_rows_stop_the_run_with_a_table_of_reasons(tree, tmp_path):
    append(tree, "interactions", b"u00000,nothing,3,1\n" * 80 + b"u00000,i00001,six,1\n" * 9)
    with pytest.raises(DataError) as caught:
        run(tree, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("interactions: 89 of 161 rows are set aside (55.3%)")
    assert "80  item_id is not in the items table, or was set aside there; for example" in lines[1]
    assert "u00000,nothing,3,1" in lines[1] and "9  rating is not a number" in lines[2]
    assert "max_rejected_fraction" in lines[-1]
    assert not (tmp_path / "out").exists()

    tree["data"]["quality"] = {"max_rejected_fraction": 0.6}
    assert run(tree, tmp_path / "out")[1]["tables"]["interactions"]["rejected"] == 89


ROWS = ["u00001,i00002,4,7", "u00001,i00002,4,7", "u00002,i00003,1,8", "x", "", "a,b,c,d", ",,,"]


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(ROWS), max_size=15), st.sampled_from(["\n", "\r\n"]))
def test_every_row_is_accounted_for(tmp_path_factory, lines, end):
    folder = tmp_path_factory.mktemp("mix")
    tree = planted(folder / "data", num_users=4, num_items=5, events_per_user=3)
    append(tree, "interactions", end.join([*lines, '"open,x']).encode())
    append(tree, "items", b"i00001,again,,5\n")
    tree["data"]["quality"] = {"max_rejected_fraction": 1.0}
    target, report = run(tree, folder / "out")
    for name, table in report["tables"].items():
        assert table["read"] == table["kept"] + table["rejected"] + table["duplicates"], name
    interactions = report["tables"]["interactions"]
    assert interactions["read"] == 13 + sum(line != "" for line in lines)
    assert interactions["rejected"] == len(rows(target, "rejected"))
    assert interactions["kept"] == len(rows(target, "interactions"))
    assert report["tables"]["items"]["duplicates"] == 1


def split_file(tree, pieces):
    """Cut the interactions into several files without changing the order of rows."""
    folder = Path(tree["data"]["root"])
    lines = (folder / "interactions.csv").read_text().splitlines(keepends=True)
    size = -(-len(lines[1:]) // pieces)
    (folder / "many").mkdir()
    for n in range(pieces):
        part = lines[1 + n * size : 1 + (n + 1) * size]
        (folder / "many" / f"{n}.csv").write_text("".join([lines[0], *part]))
    tree["data"]["interactions"]["path"] = "many"


OUTS = ("whole", "partitions", "files")


def without_rejected(files):
    return {name: data for name, data in files.items() if not name.startswith("rejected/")}


@pytest.mark.parametrize(
    ("split", "quality", "least_aside"),
    [
        ({"method": "leave_last_out"}, {}, 0),
        ({"method": "random"}, {"keep": "mean", "duplicate_key": "user_item"}, 3),
        ({"method": "global_time", "gap_s": 3e5}, {}, 3),
        ({"method": "k_fold", "fold": 1}, {}, 0),
    ],
)
def test_the_bytes_do_not_depend_on_blocks_files_or_the_order_of_rows(
    tree, tmp_path, split, quality, least_aside
):
    tree["data"] |= {"split": split, "quality": quality}
    outliers = {"method": "iqr", "threshold": 0.2, "action": "reject"}
    if split["method"] == "random":
        tree["data"]["interactions"]["columns"]["rating"]["outliers"] = outliers
    whole = contents(run(tree, tmp_path / "whole")[0])
    tree["ray"] = {"partitions": 3}
    assert contents(run(tree, tmp_path / "partitions")[0]) == whole
    path = Path(tree["data"]["root"]) / "interactions.csv"
    header, *lines = path.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_text("".join([header, *lines]))
    split_file(tree, 5)
    target = run(tree, tmp_path / "files")[0]
    # What is set aside names its file and keeps the order of the source.
    assert without_rejected(contents(target)) == without_rejected(whole)
    aside = [{(r["row"], r["reason"]) for r in rows(tmp_path / n, "rejected")} for n in OUTS]
    assert aside[0] == aside[1] == aside[2]
    assert len(aside[0]) >= least_aside


def test_large_data_is_written_in_parts_that_hold_whole_users_in_order(tree, tmp_path, monkeypatch):
    whole, _ = run(tree, tmp_path / "whole")
    monkeypatch.setattr(pipeline, "EVENTS_PER_PART", 20)
    monkeypatch.setattr(marked_module, "_sampled_users", every_user)
    target, _ = run(tree, tmp_path / "parts")
    files = sorted(path.name for path in (target / "histories").iterdir())
    assert files == [f"part-{n:05d}.parquet" for n in range(4)]
    for name in ("interactions", "histories", "users.parquet", "items.parquet"):
        assert rows(target, name) == rows(whole, name)


def every_user(marked):
    """Sample every user: what a hash picks from twelve would be too few."""
    counted = marked.column("user_id").value_counts()
    return pa.table({"user_id": counted.field("values"), "events": counted.field("counts")})


def to_format(tree, kind):
    """Rewrite the planted CSV tables as JSONL or Parquet."""
    numbers = {"rating": int, "timestamp": int, "price": int, "age": int}
    for name in ("interactions", "items", "users"):
        path = Path(tree["data"]["root"]) / f"{name}.csv"
        with path.open(newline="") as file:
            table = [
                {k: numbers.get(k, str)(v) for k, v in row.items()} for row in csv.DictReader(file)
            ]
        target = path.with_suffix(f".{kind}")
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(table), target)
        else:
            target.write_text("".join(json.dumps(row) + "\n" for row in table))
        tree["data"][name]["path"] = target.name


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_format_gives_the_same_dataset(tree, tmp_path, kind):
    from_csv = contents(run(tree, tmp_path / "csv")[0])
    to_format(tree, kind)
    assert contents(run(tree, tmp_path / kind)[0]) == from_csv


def test_integer_ids_are_remembered(tmp_path):
    ids = [2**60 + 1, 2**60 + 2]
    table = pa.table({"user_id": ids, "item_id": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    tree = {
        "data": {"root": str(tmp_path), "interactions": {"path": "x.parquet"}},
        "tasks": [{"name": "retrieval", "kind": "retrieval"}],
    }
    target, report = run(tree, tmp_path / "out")
    assert report["id_types"] == {"user_id": "int64", "item_id": "string"}
    assert [r["user_id"] for r in rows(target, "users.parquet")] == [str(i) for i in ids]


def test_clicks_alone_make_a_dataset_with_the_trained_items_as_catalogue(tree, tmp_path):
    data = tree["data"]
    data["interactions"]["columns"] = {}
    tree = {
        "run": tree["run"],
        "data": {"root": data["root"], "interactions": data["interactions"]},
        "tasks": [{"name": "retrieval", "kind": "retrieval"}],
    }
    target, report = run(tree, tmp_path / "out")
    training = {r["item_id"] for r in rows(target, "interactions") if r["split"] == "train"}
    assert {r["item_id"] for r in rows(target, "items.parquet")} == training
    assert {r["text"] for r in rows(target, "items.parquet")} == {None}
    assert report["items"] == len(training)


def test_behaviour_texts_tell_no_held_out_event(tree, tmp_path):
    tree["data"]["split"] = {"method": "random", "validation": 0.2, "test": 0.2}
    target, _ = run(tree, tmp_path / "out")
    titles = {r["item_id"]: r["title"] for r in rows(target, "items.parquet")}
    held_out = [r for r in rows(target, "interactions") if r["split"] != "train"]
    told = {r["user_id"]: r["behaviour_text"] or "" for r in rows(target, "users.parquet")}
    assert any(told.values())
    assert held_out
    for row in held_out:
        names = told[row["user_id"]].replace("; disliked: ", ", ").removeprefix("liked: ")
        assert titles[row["item_id"]] not in names.split(", ")


def test_the_worked_example_holds_four_ratings_of_three_items(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parents[1])
    config = load_config(CONFIGS / "worked-example.yaml")
    manifest = prepare(config, path=str(tmp_path / "out"), key="key")
    assert manifest.details["split"] == {"train": 4, "validation": 0, "test": 0}
    assert [r["text"] for r in rows(tmp_path / "out", "items.parquet")] == [
        "服装 羽绒服",
        "服装 毛衣",
        "服装 短裤",
    ]
    first, second = rows(tmp_path / "out", "histories")
    assert (first["user_id"], first["task_rating"]) == ("u1", [5.0, 4.0])
    assert (second["user_id"], second["task_like"]) == ("u2", [0.0, 1.0])


def test_movielens_holds_what_it_is_known_to_hold(tmp_path):
    def absent(folder):
        pytest.skip("MovieLens-100K is not in the cache")

    movielens_100k(cache_folder(), absent)
    manifest = prepare(load_config(CONFIGS / "movielens.yaml"), path=str(tmp_path / "out"), key="")
    # 100,000 ratings of 943 users (each at least 20) and 1,682 films, none of them broken.
    assert manifest.details["split"] == {"train": 98_114, "validation": 943, "test": 943}
    assert (manifest.details["users"], manifest.details["items"]) == (943, 1682)
    assert rows(tmp_path / "out", "rejected") == []
    first = rows(tmp_path / "out", "items.parquet")[0]
    assert first["text"] == "Toy Story (1995) | Animation, Children's, Comedy"


def test_input_without_a_usable_row_says_why(tree, tmp_path):
    path = Path(tree["data"]["root"]) / "interactions.csv"
    path.write_text("user_id,item_id,rating,timestamp\nu00000,i00000,good,1\n")
    with pytest.raises(DataError, match="none of 1 rows can be used; reasons: 1 x rating is not"):
        run(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_text("user_id,item_id,rating,timestamp\n")
    with pytest.raises(DataError, match="none of 0 rows"):
        run(tree, tmp_path / "out")


def test_labels_out_of_their_tasks_range_stop_the_run_and_leave_nothing(tree, tmp_path):
    tree["tasks"][1]["max"] = 4
    with pytest.raises(DataError, match=r'^task rating: label "rating" has .* expected 1 to 4'):
        run(tree, tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []


def test_a_file_that_breaks_off_stops_the_run_and_is_named(tree, tmp_path):
    path = Path(tree["data"]["root"]) / "interactions.csv.gz"
    with pa.output_stream(str(path)) as stream:
        stream.write(b"user_id,item_id,rating,timestamp\n" + random.Random(0).randbytes(9_000_000))
    path.write_bytes(path.read_bytes()[:-1000])
    tree["data"]["interactions"]["path"] = path.name
    with pytest.raises(DataError, match=r"cannot read interactions.csv.gz as csv"):
        run(tree, tmp_path / "out")


def test_a_split_without_training_events_is_refused(tree, tmp_path):
    path = Path(tree["data"]["root"]) / "interactions.csv"
    path.write_text("user_id,item_id,rating,timestamp,part\nu00000,i00000,3,1,test\n")
    tree["data"]["interactions"]["split"] = "part"
    tree["data"]["split"] = {"method": "column"}
    with pytest.raises(DataError, match="none of 1 events is for training"):
        run(tree, tmp_path / "out")


def test_the_fingerprint_changes_with_the_content_of_the_input_only(tree):
    config = parse_config(tree)
    before = input_fingerprint(config)
    path = Path(tree["data"]["root"]) / "items.csv"
    path.write_bytes(path.read_bytes())
    assert input_fingerprint(config) == before
    append(tree, "items", b"i99999,new,,5\n")
    assert input_fingerprint(config) != before


def test_large_inputs_are_told_apart_by_size_and_time(tree, monkeypatch):
    monkeypatch.setattr(pipeline, "HASHED_INPUT_BYTES", 0)
    found = input_fingerprint(parse_config(tree))
    assert all(" bytes, changed " in line for line in found)
