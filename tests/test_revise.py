"""Versions without training: added items answer by content, removed users leave no trace."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import GENRES, Small, make_small
from typer.testing import CliRunner

from mtrec import artifacts, storage
from mtrec.bundle import load_bundle
from mtrec.cli import app
from mtrec.errors import ArtifactError, DataError
from mtrec.recommender import Recommender
from mtrec.revise import Revised, add_items, remove_users
from mtrec.runlock import LOCK, hold_folder
from mtrec.versions import find_bundle

NEW = [
    {"item_id": f"new-{at:02d}", "title": f"{GENRES[at % 3]} story number {at}", "price": at}
    | {"genres": [GENRES[at % 3], "all"], "brand": "ab"[at % 2]}
    for at in range(20, 26)
]


@pytest.fixture
def bundles(small: Small, tmp_path: Path) -> Path:
    shutil.copytree(small.bundles, tmp_path / "bundles")
    return tmp_path / "bundles"


def write(folder: Path, rows: list[dict[str, Any]], name: str = "new.jsonl") -> str:
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return str(folder / name)


def test_new_items_are_known_by_what_the_item_tower_says_of_them(
    bundles: Path, small: Small, tmp_path: Path
) -> None:
    """A new row equal to an old one gets the old one's content: computed by another way."""
    before = load_bundle(str(bundles))
    old = before.items.to_pylist()[4]
    twin = {name: old[name] for name in ("title", "genres", "brand", "price")}
    done = add_items(str(bundles), write(tmp_path, [{"item_id": "zz-twin", **twin}]))
    after = load_bundle(str(bundles))

    assert (done.changed, done.left) == (1, [])
    assert after.version == done.version != before.version
    # The small bundle's vectors are drawn, not made by its tower: compare with the tower.
    import torch

    from mtrec.model.loading import feature_inputs

    text = np.asarray(before.vectors.text, np.float32)
    inputs = feature_inputs(before.transform.item_features(before.items), text, shift=2)
    with torch.no_grad():
        expected = before.model.items.content(inputs)[6].numpy()
    np.testing.assert_allclose(after.vectors.content[-1], expected, atol=2e-3)
    assert after.vectors.collaborative[-1].tolist() == [0.0] * 8
    assert after.vectors.bias[-1] == 0.0
    np.testing.assert_array_equal(after.vectors.content[:-1], before.vectors.content)


def test_the_factors_of_a_new_item_are_told_by_its_text(tmp_path: Path) -> None:
    small = make_small(tmp_path / "small", ials=True)
    before = load_bundle(str(small.bundles))
    # Nobody met the last item: its factors are told as well.
    (old,) = before.items.slice(11).to_pylist()
    twin = {name: old[name] for name in ("title", "genres", "brand", "price")}
    add_items(str(small.bundles), write(tmp_path, [{"item_id": "zz-twin", **twin}]))
    after = load_bundle(str(small.bundles))
    assert before.ials is not None and after.ials is not None
    assert np.abs(before.ials.items[13]).max() > 0.01
    np.testing.assert_allclose(after.ials.items[14], before.ials.items[13], atol=1e-6)
    assert after.ials.told is not None
    assert np.flatnonzero(after.ials.told).tolist() == [13, 14]
    np.testing.assert_array_equal(after.ials.gram, before.ials.gram)
    expected = np.concatenate([after.vectors.content[14], after.ials.items[14]])
    np.testing.assert_array_equal(after.vectors.search[14], expected)


def test_what_a_bundle_answered_it_answers_as_before_where_nothing_new_is_listed(
    bundles: Path, small: Small, tmp_path: Path
) -> None:
    add_items(str(bundles), write(tmp_path, NEW))
    old = [f"item-{at:02d}" for at in range(12)]
    requests = [{"user_id": f"u{at}", "k": 10, "exclude": [row["item_id"] for row in NEW]}
                for at in range(8)]  # fmt: skip

    before, after = Recommender.load(small.path), Recommender.load(str(bundles))
    for ours, theirs in zip(after.recommend(requests), before.recommend(requests), strict=True):
        assert [entry["item_id"] for entry in ours["recommendations"]] == [
            entry["item_id"] for entry in theirs["recommendations"]
        ]
        for one, other in zip(ours["recommendations"], theirs["recommendations"], strict=True):
            assert one["tasks"]["stars"] == pytest.approx(other["tasks"]["stars"], rel=1e-5)
    assert after.score({"user_id": "u1"}, old)[0]["tasks"].keys() == {"click", "stars", "like"}


def test_new_items_come_in_lists_filters_search_and_similar_items(
    bundles: Path, tmp_path: Path
) -> None:
    add_items(str(bundles), write(tmp_path, NEW))
    recommender = Recommender.load(str(bundles))

    (listed,) = recommender.recommend(
        [{"user_id": "u1", "k": 50, "filter": {"price": {"min": 20}}}]
    )
    ids = [entry["item_id"] for entry in listed["recommendations"]]
    assert sorted(ids) == [row["item_id"] for row in NEW]
    assert recommender.describe(["new-21"])[0]["title"] == f"{GENRES[0]} story number 21"
    assert [item["item_id"] for item in recommender.find_items("new-2", 2)] == ["new-20", "new-21"]
    text = recommender.similar_items(text=f"{GENRES[1]} story number 22", k=1)
    assert text[0]["item_id"] == "new-22"
    assert recommender.info()["counts"]["items"] == 18


def test_items_with_equal_scores_stay_in_the_order_of_ids(bundles: Path, tmp_path: Path) -> None:
    rows = [{**NEW[0], "item_id": item} for item in ("aa-first", "zz-last")]
    add_items(str(bundles), write(tmp_path, rows))

    (answer,) = Recommender.load(str(bundles)).recommend([{"user_id": "u1", "k": 50}])
    ids = [entry["item_id"] for entry in answer["recommendations"]]
    assert ids.index("aa-first") + 1 == ids.index("zz-last")


def test_a_csv_with_the_tables_own_names_and_integer_ids(tmp_path: Path) -> None:
    small = make_small(tmp_path / "integers", integer_ids=True)
    file = tmp_path / "new.csv"
    file.write_text("item_id,title,genres,brand,price\n900,space story,space,a,1\n")

    done = add_items(str(small.bundles), str(file))

    found = Recommender.load(str(small.bundles)).find_items("space story", 50)
    assert done.changed == 1
    assert found[-1]["item_id"] == 900
    file.write_text("item_id,title,genres,brand,price\nx1,space story,space,a,1\n")
    with pytest.raises(DataError, match="is not a whole number"):
        add_items(str(small.bundles), str(file))


def test_known_items_stay_and_nothing_new_makes_no_version(bundles: Path, tmp_path: Path) -> None:
    known = {**NEW[0], "item_id": "item-03"}
    done = add_items(str(bundles), write(tmp_path, [known]))

    assert (done.version, done.changed, done.left) == (None, 0, ["item-03"])
    assert len([path for path in bundles.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{**NEW[0], "price": "dear"}, NEW[1]], r"1 of 2 rows .* row 1: price"),
        ([NEW[0], NEW[0]], "2 of 2 rows .*more than once"),
        ([{**NEW[0], "item_id": ""}], "1 of 1 rows .* item_id"),
        ([{"title": "x"}], "item_id"),
    ],
)
def test_rows_that_do_not_fit_are_named_and_nothing_is_written(
    bundles: Path, tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    before = find_bundle(str(bundles))
    with pytest.raises(DataError, match=told):
        add_items(str(bundles), write(tmp_path, rows))

    assert find_bundle(str(bundles)) == before
    assert {path.name for path in bundles.iterdir()} - {LOCK} == {"CURRENT", Path(before).name}


def test_a_file_that_is_not_there_has_a_remedy_of_its_own(bundles: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv is not there.*\ngive --items a file"):
        add_items(str(bundles), f"{bundles}/none.csv")


def test_the_new_version_is_whole_and_tells_where_it_comes_from(
    bundles: Path, small: Small, tmp_path: Path
) -> None:
    done = add_items(str(bundles), write(tmp_path, NEW))
    place = f"{bundles}/{done.version}"
    manifest = artifacts.read_manifest(place, "bundle")

    artifacts.verify(place, manifest, hashes=True)
    assert manifest.parents["bundle"] == artifacts.read_manifest(small.path, "bundle").id
    assert storage.read_json(f"{place}/config.json")["revised"] == ["add-items"]
    weights = load_bundle(place).model.state_dict()
    before = load_bundle(small.path).model.state_dict()
    for name, value in before.items():
        assert np.array_equal(weights[name][: len(value)], value), name
        assert not weights[name][len(value) :].any(), name


def test_of_a_removed_user_no_file_of_the_new_version_holds_the_id(
    tmp_path: Path,
) -> None:
    small = make_small(tmp_path, social=True)
    users = tmp_path / "gone.txt"
    users.write_bytes("\ufeffu1\r\nu4\r\nnobody\n\n".encode())
    before = Recommender.load(str(small.bundles))

    result = CliRunner().invoke(
        app, ["bundle", "remove-users", str(small.bundles), "--users", str(users)]
    )
    assert result.exit_code == 0, result.output
    assert "2 users removed" in result.output
    assert "1 users are not in the bundle" in result.output

    place = Path(find_bundle(str(small.bundles)))
    assert b"u1u2" in (Path(small.path) / "users" / "ids.npy").read_bytes()
    assert b"u0u2u3u5u6u7" in (place / "users" / "ids.npy").read_bytes()
    after = Recommender.load(str(place))
    (answer,) = after.recommend([{"user_id": "u1"}])
    assert answer["cold_start"]
    stays = [{"user_id": user, "k": 5} for user in ("u0", "u2", "u3", "u5", "u6", "u7")]
    assert [a["recommendations"] for a in after.recommend(stays)] == [
        a["recommendations"] for a in before.recommend(stays)
    ]
    for user in stays:
        assert after.user(user["user_id"], 9) == before.user(user["user_id"], 9)  # type: ignore[arg-type]  # ids
    befriended = after.friends({"user_id": "u2"}, 8)
    assert {entry["user_id"] for entry in befriended} <= {"u0", "u3", "u5", "u6", "u7"}
    # The other files are those of before: none of them has a row for a user.
    old = artifacts.read_manifest(small.path, "bundle").files
    new = artifacts.read_manifest(str(place), "bundle").files
    changed = {name for name in new if new[name] != old.get(name)}
    assert {name.split("/")[0] for name in changed} == {"users", "config.json"}


def test_values_that_training_never_saw_are_counted(bundles: Path, tmp_path: Path) -> None:
    row = load_bundle(str(bundles)).items.to_pylist()[4]
    known = {name: row[name] for name in ("title", "genres", "brand", "price")}
    strange = {**known, "genres": "no|such", "brand": "nobody's"}
    rows = [{"item_id": f"zz-{at}", **(known if at else strange)} for at in range(3)]

    done = add_items(str(bundles), write(tmp_path, rows))

    assert done.unknown == {"genres": 1, "brand": 1}


def test_removing_nobody_known_makes_no_version(bundles: Path) -> None:
    done = remove_users(str(bundles), ["nobody"])

    assert (done.version, done.changed, done.left) == (None, 0, ["nobody"])


def test_two_changes_at_once_are_refused(bundles: Path, tmp_path: Path) -> None:
    with hold_folder(str(bundles)), pytest.raises(ArtifactError, match="another run is at work"):
        add_items(str(bundles), write(tmp_path, NEW))
    assert add_items(str(bundles), write(tmp_path, NEW)).changed == len(NEW)


def test_ids_of_users_are_taken_byte_by_byte(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(_: str, ids: list[str]) -> Revised:
        asked.extend(ids)
        return Revised(None, 0, [])

    monkeypatch.setattr("mtrec.revise.remove_users", note)
    users = tmp_path / "gone.txt"
    users.write_bytes(" a \nb\u0085c\u2028d\n \n".encode())
    CliRunner().invoke(app, ["bundle", "remove-users", str(bundles), "--users", str(users)])
    assert asked == [" a ", "b\u0085c\u2028d"]


def test_no_bundle_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no bundle"):
        add_items(str(tmp_path), write(tmp_path, NEW))


def test_the_command_line_adds_items_and_names_the_version(bundles: Path, tmp_path: Path) -> None:
    arguments = ["bundle", "add-items", str(bundles), "--items", write(tmp_path, NEW)]
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    assert f"version {Path(find_bundle(str(bundles))).name}: 6 items added" in result.output
