"""The evaluate stage on a small bundle: answers in order, the report written, refusals."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_histories import with_held_out

from mtrec import storage
from mtrec.bundle import load_bundle
from mtrec.data.histories import Histories
from mtrec.errors import ArtifactError

if TYPE_CHECKING:
    from small_bundle import Small

    from mtrec.config import Config


def _dataset(small: "Small", folder: Path, histories: Histories) -> str:
    """Write the small dataset with these histories, two users in the first part."""
    os.makedirs(folder / "histories")
    for name in ("items.parquet", "users.parquet", "transform.json"):
        (folder / name).write_bytes((small.dataset / name).read_bytes())
    counts = {"read": 100, "kept": 90, "rejected": 10, "duplicates": 0}
    (folder / "report.json").write_text(json.dumps({"tables": {"interactions": counts}}))
    users = np.arange(len(histories))
    for part, rows in enumerate((users[:2], users[2:])):
        pq.write_table(
            histories.rows(rows).to_table(), folder / "histories" / f"part-{part}.parquet"
        )
    return str(folder)


def _config(small: "Small", **evaluate: object) -> "Config":
    values = {"k": 4, "bootstrap_samples": 100, **evaluate}
    section = small.config.evaluate.model_copy(update=values)
    return small.config.model_copy(update={"evaluate": section})


def test_samples_are_asked_with_what_was_known_before_test(small: "Small") -> None:
    from mtrec.answers import as_evaluated
    from mtrec.comparison import Draws
    from mtrec.dial import measure_dial
    from mtrec.evaluate import _item_facts, look_closer
    from mtrec.recommender import Recommender
    from mtrec.removal import removal_test

    config = _config(small, explanations=5, dial=[0.0, 1.0], dial_users=4)
    shipped, histories = load_bundle(small.path), with_held_out(small.histories)
    facts = _item_facts(shipped, pq.read_table(small.dataset / "items.parquet"))
    found = look_closer(config, shipped, histories, facts)

    known = histories.before("test")
    popular = np.bincount(known.item_index, minlength=14) * (np.arange(14) > 1.0)
    recommender = Recommender(as_evaluated(shipped, config, popular))
    assert found["explanations"] == removal_test(recommender, known, num_users=5, seed=0)
    draws = Draws(100, 0)
    assert found["dial"] == measure_dial(
        *(recommender, histories, "test", facts),
        **{"settings": [0.0, 1.0], "k": 4, "num_users": 4, "draws": draws},  # type: ignore[arg-type]  # of several types
    )


def test_tables_of_which_much_was_set_aside_are_named() -> None:
    from mtrec.evaluate import _set_aside

    def told(**rejected: int) -> list[str]:
        return _set_aside(
            {"tables": {name: {"read": 100, "rejected": n} for name, n in rejected.items()}}
        )

    assert told(interactions=4, items=0) == []
    (note,) = told(interactions=33, items=1)
    assert note.startswith("interactions: 33 of 100 rows were set aside;")
    assert _set_aside({"tables": {"items": {"read": 0, "rejected": 0}}}) == []


def test_samples_that_are_not_wanted_are_not_taken(small: "Small") -> None:
    from mtrec.evaluate import _item_facts, look_closer

    config = _config(small, explanations=0, dial=[])
    shipped = load_bundle(small.path)
    facts = _item_facts(shipped, pq.read_table(small.dataset / "items.parquet"))
    assert look_closer(config, shipped, with_held_out(small.histories), facts) == {}


@pytest.mark.ray
def test_evaluate_writes_report_and_page(small: "Small", tmp_path: Path, ray_local: None) -> None:
    from mtrec.evaluate import evaluate

    dataset = _dataset(small, tmp_path / "dataset", with_held_out(small.histories))
    config = _config(small, max_dense_items=5)
    manifest = evaluate(
        config,
        dataset=dataset,
        bundle=str(small.bundles),
        path=str(tmp_path / "report"),
        key="k",
        parents={"dataset": "d"},
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (manifest.kind, manifest.key) == ("report", "k")
    assert report["bundle"]["version"] == small.version
    assert set(report["model"]) == {"click", "stars", "like"}
    assert {"random", "bigram", "itemknn", "ials", "bias"} <= set(report["baselines"])
    assert any("ease was left out: the catalogue has 12 items" in n for n in report["notes"])
    assert any("interactions: 10 of 100 rows were set aside" in n for n in report["notes"])
    assert any("fitted on train alone" in note for note in report["notes"])
    assert report["explanations"]["holds"]["of"] > 0
    assert [point["dial"] for point in report["dial"]["points"]] == [0, 0.1, 0.2, 0.3, 0.5, 0.7]
    # At 0 the dial gives the model's own lists, to the same users.
    assert report["dial"]["points"][0]["ndcg@4"] == report["model"]["click"]["ndcg@4"]
    assert report["dial"]["points"][0]["diversity@4"] == report["model"]["click"]["diversity@4"]
    assert "</html>" in (tmp_path / "report" / "report.html").read_text()
    # The model's figures are those of its answers, whatever the parts and batches.
    from mtrec.answers import answer, as_evaluated
    from mtrec.recommender import Recommender

    histories = with_held_out(small.histories)
    recommender = Recommender(as_evaluated(load_bundle(small.path), config, np.zeros(14)))
    lists, predictions = answer(recommender, histories, "test", k=4, tasks=["stars", "like"])
    last = histories.offsets[1:] - 1
    hits = (lists == histories.item_index[last][:, None]).any(1)
    assert report["model"]["click"]["hr@4"] == pytest.approx(hits.mean())
    labelled = np.isfinite(histories.labels["stars"][last])
    error = predictions["stars"] - histories.labels["stars"][last]
    expected = np.sqrt((error[labelled].astype(np.float64) ** 2).mean())
    assert report["model"]["stars"]["rmse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.ray
def test_cold_items_are_ranked_among_themselves_beside_baselines_that_read_text(
    small: "Small", tmp_path: Path, ray_local: None
) -> None:
    from mtrec.evaluate import evaluate
    from mtrec.recommender import Recommender

    # Events of the items at 8 to 11 are test, whoever's; 6 and 7 are validation.
    item = small.histories.item_index
    split = np.select([np.isin(item, range(8, 12)), np.isin(item, (6, 7))], [2, 1], 0)
    histories = replace(small.histories, split=split.astype(np.int8))
    evaluate(
        _config(
            small, candidates="cold", baselines=["popularity", "text_nearest", "ials_text"], k=3
        ),
        dataset=_dataset(small, tmp_path / "dataset", histories),
        bundle=small.path,
        path=str(tmp_path / "report"),
        key="k",
        parents={},
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    bundle = load_bundle(small.path)
    recommender = Recommender(bundle)
    known = histories.before("test")
    unmet = [place for place in range(2, 14) if place not in known.item_index]
    text = np.asarray(bundle.vectors.text, np.float64)
    ours, nearest, popular, free = [], [], [], []
    for user in range(len(histories)):
        mine = histories.rows([user])
        wanted = set(mine.item_index[mine.split == 2])
        if not wanted:
            continue
        ranked = recommender.rank_lists(known.rows([user]), k=12).item_index
        listed = [place for place in ranked[0] if place in unmet][:3]
        ours.append(len(wanted & set(listed)) / len(wanted))
        free.append(len(wanted & set(ranked[0, :3])) / len(wanted))
        # Nobody has met any of them: popularity has them in the order of their positions.
        popular.append(len(wanted & set(unmet[:3])) / len(wanted))
        mean = sum(text[place] for place in known.rows([user]).item_index if place > 1)
        cosine = {place: mean @ text[place] / np.linalg.norm(text[place]) for place in unmet}
        best = sorted(unmet, key=lambda place: (-cosine[place], place))[:3]
        nearest.append(len(wanted & set(best)) / len(wanted))
    assert np.mean(free) < np.mean(ours)  # so that the restriction shows
    assert report["model"]["click"]["recall@3"] == pytest.approx(np.mean(ours))
    for name, values in (("text_nearest", nearest), ("popularity", popular)):
        found = report["baselines"][name]["click"]["recall@3"]
        assert found == pytest.approx(np.mean(values))
    assert set(report["tuned"]["ials_text"]["click"]["settings"]) >= {"ridge", "factors"}


def test_baselines_that_read_text_are_left_out_aloud_where_there_is_none(small: "Small") -> None:
    from mtrec.evaluate import ask_baselines

    config = _config(small, baselines=["popularity", "text_nearest"])
    answered = {"test": {}}
    _, notes = ask_baselines(config, with_held_out(small.histories), 14, answered)
    assert notes == ["text_nearest was left out: the items have no text"]
    assert set(answered["test"]) == {"popularity"}


@pytest.mark.ray
def test_without_held_out_events_evaluate_says_so(
    small: "Small", tmp_path: Path, ray_local: None
) -> None:
    from mtrec.evaluate import evaluate

    evaluate(
        _config(small),
        dataset=_dataset(small, tmp_path / "dataset", small.histories),
        bundle=small.path,
        path=str(tmp_path / "report"),
        key="k",
        parents={},
    )
    report = storage.read_json(str(tmp_path / "report" / "report.json"))
    assert report["model"] == {}
    assert any("no figures on test" in note for note in report["notes"])


def test_a_bundle_that_was_fitted_on_test_is_refused(
    small: "Small", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtrec import evaluate

    bundle = replace(load_bundle(small.path), fitted_on=["train", "validation", "test"])
    monkeypatch.setattr(evaluate, "load_bundle", lambda path: bundle)
    with pytest.raises(ArtifactError, match="was fitted on train, validation, test"):
        evaluate.evaluate(
            small.config,
            dataset=str(small.dataset),
            bundle=small.path,
            path=str(tmp_path / "report"),
            key="k",
            parents={},
        )
    assert not (tmp_path / "report").exists()


def test_a_dataset_with_other_items_is_refused(small: "Small", tmp_path: Path) -> None:
    from mtrec.evaluate import evaluate

    dataset = _dataset(small, tmp_path / "dataset", small.histories)
    items = pq.read_table(tmp_path / "dataset" / "items.parquet")
    pq.write_table(items.slice(0, 7), tmp_path / "dataset" / "items.parquet")
    with pytest.raises(ArtifactError, match="12 items that are not the dataset's 7"):
        evaluate(
            small.config,
            dataset=dataset,
            bundle=small.path,
            path=str(tmp_path / "report"),
            key="k",
            parents={},
        )
