"""The quality job: rows, resume by row and seed, parts and twins, one small row for real."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_report import report

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import _running
from _rows import ROWS, Part, Row, _parts, chosen_rows, find_folder
from _running import NUM_FOLDS, Options
from _seeds import Goal
from quality import measure

from mtrec.bundle import load_bundle
from mtrec.config import Config
from mtrec.configfile import load_config
from mtrec.data.dataset import read_histories
from mtrec.errors import ConfigError, DataError
from mtrec.paths import Paths
from mtrec.recommender import Recommender
from mtrec.stages import Outcome

JOBS = Path(__file__).parents[2] / "jobs"
Tree = dict[str, Any]


def options(out: Path, **changes: Any) -> Options:
    return Options(
        **{"data": None, "out": out, "seeds": 1, "text": None, "overrides": ()} | changes
    )


# ---- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_asks_for_tasks_and_baselines_of_its_configuration(row: Row) -> None:
    config = load_config(_running.CONFIGS / f"{row.config}.yaml")

    assert {goal.task for goal in row.goals} <= {task.name for task in config.tasks}
    for goal in row.goals:
        assert {*goal.beat, *goal.aim_over} <= set(config.evaluate.baselines)


def test_every_configuration_belongs_to_a_row() -> None:
    assert {path.stem for path in _running.CONFIGS.glob("*.yaml")} == {row.config for row in ROWS}


@pytest.mark.parametrize(("cold", "random"), [("c2", "p3"), ("c2h", "p8")])
def test_cold_users_ask_the_model_of_the_random_split(cold: str, random: str) -> None:
    one, other = (load_config(_running.CONFIGS / f"{name}.yaml") for name in (cold, random))

    assert one.model == other.model
    assert one.train == other.train.model_copy(update={"refit": "no"})
    assert one.text == other.text


def test_rows_are_chosen_by_name_in_the_tables_order() -> None:
    assert [row.name for row in chosen_rows("p12, P3")] == ["P3", "P12"]
    assert chosen_rows(None) == list(ROWS)
    with pytest.raises(ConfigError, match="names p99; there are P1b, P3"):
        chosen_rows("P3,P99")


def test_data_is_looked_for_by_folder_name_and_its_absence_is_told(tmp_path: Path) -> None:
    (tmp_path / "ml-1m-sequences").mkdir()
    names = ("ml-1m", "ml-1m-sequences")

    assert find_folder(tmp_path, *names) == tmp_path / "ml-1m-sequences"
    with pytest.raises(DataError, match=r"has no hetrec/"):
        find_folder(tmp_path, "hetrec")
    with pytest.raises(DataError, match=r"without --data there is no ml-1m/ or ml-1m-sequences/"):
        find_folder(None, *names)


# ---- resume -------------------------------------------------------------------------------------


class Chain:
    """Stand in for `mtrec.run`: remember what was asked for and leave a report."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.stop_at = stop_at
        self.asked: list[tuple[int, str]] = []

    def __call__(self, config: Config, *, stages: tuple[str]) -> Outcome:
        (stage,) = stages
        if stage == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((config.run.seed, stage))
        paths = Paths(config.run.workdir)
        if stage == "evaluate":
            Path(paths.report).mkdir(parents=True)
            tree = report(0.3 + 0.1 * config.run.seed, {"ease": (0.2, 0.2)})
            (Path(paths.report) / "report.json").write_text(json.dumps(tree))
        return Outcome(paths, done={stage: 12.34})


@pytest.fixture
def row() -> Row:
    goals = (Goal("t", "ndcg@10", at_least=0.3, aim=0.5), Goal("t", "unmeasured"))
    return Row("X", "a protocol", "p5", lambda data: data or Path("nowhere"), None, goals)


def test_what_is_finished_is_read_and_what_was_interrupted_goes_on(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = options(tmp_path, seeds=2)
    first = Chain()
    monkeypatch.setattr(_running.mtrec, "run", first, raising=False)
    assert measure([row], options(tmp_path)) == ["X"]
    assert first.asked == [(0, stage) for stage in _running.STAGES]

    monkeypatch.setattr(_running.mtrec, "run", Chain(stop_at="evaluate"), raising=False)
    with pytest.raises(KeyboardInterrupt):
        measure([row], chosen)
    assert "X, seed 0: done before" in capsys.readouterr().out

    last = Chain()
    monkeypatch.setattr(_running.mtrec, "run", last, raising=False)
    measure([row], chosen)
    # The chain itself skips what is up to date: it is asked for all stages of seed 1 alone.
    assert last.asked == [(1, stage) for stage in _running.STAGES]
    table = (tmp_path / "quality.md").read_text()
    assert "| X | a protocol | ndcg@10 (t) | .3500 ± .0707 | ease .2000 |" in table
    assert "| X | 2 |  |  |  |  | 12 |" in table
    assert "the report has no unmeasured of t" in capsys.readouterr().out


def test_another_configuration_is_run_anew_and_a_moved_result_is_not(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_running.mtrec, "run", Chain(), raising=False)
    measure([row], options(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")

    moved = Chain()
    monkeypatch.setattr(_running.mtrec, "run", moved, raising=False)
    measure([row], options(tmp_path / "there"))
    assert moved.asked == []

    (tmp_path / "there" / "p5" / "seed-0" / "run").rename(tmp_path / "old")
    measure([row], options(tmp_path / "there", overrides=("train.epochs=1",)))
    assert len(moved.asked) == len(_running.STAGES)


def test_a_row_without_data_is_skipped_aloud_and_the_others_run(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_running.mtrec, "run", Chain(), raising=False)

    assert measure([*chosen_rows("P8"), row], options(tmp_path)) == ["X"]
    assert (
        "P8: skipped; without --data there is no hetrec2011-lastfm-2k/" in capsys.readouterr().out
    )


def test_twins_share_the_joint_runs_folder_and_have_a_result_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def chain(config: Config, *, stages: tuple[str, ...], twins: bool) -> Outcome:
        asked.append((config.run.seed, stages, twins))
        paths = Paths(config.run.workdir)
        assert paths.workdir == str(tmp_path / "p5" / "seed-0" / "run")
        change = {"relative": -0.05, "relative_interval": [-0.06, -0.04]}
        entry = {"metric": "ndcg@10", "joint": 0.38, "twin": 0.40, **change}
        Path(paths.twins).mkdir(parents=True)
        tree = {"tasks": {"t": {**entry, "difference": -0.02, "interval": [-0.03, -0.01]}}}
        (Path(paths.twins) / "twins.json").write_text(json.dumps(tree))
        return Outcome(paths, done={"train": 5.0, "evaluate": 9.0, "twin of t": 7.0})

    goal = Goal("t", "ndcg@10", beside="twin", max_loss=0.02)
    row = Row("M", "x", "p5", lambda data: Path("x"), None, (goal,), kind="twins")
    monkeypatch.setattr(_running.mtrec, "run", chain, raising=False)
    for _ in range(2):
        measure([row], options(tmp_path))

    assert asked == [(0, _running.STAGES, True)]
    assert "M, seed 0: done before" in capsys.readouterr().out
    table = (tmp_path / "quality.md").read_text()
    assert "| .3800 | twin .4000 | -5.0 % [-6.0, -4.0] |" in table
    assert "| M | 1 |  |  |  |  |  |" in table


@pytest.mark.parametrize("row", [r for r in ROWS if r.kind == "parts"], ids=lambda row: row.name)
def test_every_part_is_one_of_the_rows_model(row: Row) -> None:
    path = _running.CONFIGS / f"{row.config}.yaml"
    whole = load_config(path)

    for part in row.parts:
        assert load_config(path, [*part.overrides]) != whole, part.name


def test_a_part_is_compared_with_the_whole_model_on_validation_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Config] = []

    def chain(config: Config, *, stages: tuple[str, ...]) -> Outcome:
        assert stages == ("prepare", "embed", "train")
        is_new = config not in trained
        trained.extend([config] * is_new)
        return Outcome(Paths(config.run.workdir), done={"train": 5.0} if is_new else {})

    def compare(config: Config, *, bundle: str, others: Any, split: str, **_: str) -> Tree:
        assert config in trained and (config.train.ema_decay, split) == (0.99, "validation")
        assert set(others) == {"retrieval", "rating", "like"}
        for other, place in others.values():
            assert other == trained[-1] and place != bundle
        change = {"relative": 0.25, "relative_interval": [0.2, 0.3]}
        entry = {"metric": "ndcg@10", "joint": 0.1, "twin": 0.08, **change}
        return {"tasks": {"retrieval": {**entry, "difference": 0.02, "interval": [0.01, 0.03]}}}

    parts = [Part(name, (f"train.ema_decay={value}",)) for name, value in (("a b", 0), ("c", 0.5))]
    row = _parts("A", "x", "p1b", lambda data: Path("x"), None, *parts)
    monkeypatch.setattr(_running.mtrec, "run", chain, raising=False)
    monkeypatch.setattr(_running, "find_bundle", lambda folder: folder)
    monkeypatch.setattr(_running, "compare_bundles", compare)
    for _ in range(2):
        assert measure([row], options(tmp_path, seeds=2)) == ["A"]

    assert [config.train.ema_decay for config in trained] == 2 * [0.99, 0.0, 0.5]
    assert {config.data.split.fold for config in trained} == {0}  # type: ignore[union-attr]
    assert {(config.train.refit, config.run.seed) for config in trained} == {("no", 0), ("no", 1)}
    assert capsys.readouterr().out.count("done before") == 4
    table = (tmp_path / "quality.md").read_text()
    line = "| A | x, on validation | ndcg@10 (retrieval) | .1000 ± .0000 | {} .0800 | +25.0 %"
    assert line.format("a b") in table and line.format("c") in table


# ---- results ------------------------------------------------------------------------------------


def test_the_readmes_tables_are_made_of_the_results_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(row: Row, seed: int, *_: object) -> Path:
        raise AssertionError(f"{row.name}, seed {seed}: jobs/results/quality is of other settings")

    monkeypatch.setattr(_running, "_tables", refuse)
    results = JOBS / "results" / "quality"
    last = {
        "report": lambda row: ["result.json"],
        "twins": lambda row: ["twins.json"],
        "cold_users": lambda row: [f"fold-{NUM_FOLDS - 1}/result.json"],
        "parts": lambda row: [f"parts/{part.name.replace(' ', '-')}.json" for part in row.parts],
    }
    measured = []
    for row in ROWS:
        seeds = [*(results / row.config).glob("seed-*")]
        done = [all((seed / name).is_file() for name in last[row.kind](row)) for seed in seeds]
        if any(done):
            assert sum(done) == row.seeds, f"{row.name}: without --seeds another table would come"
            measured.append(row)
    assert {row.kind for row in measured} == {row.kind for row in ROWS}

    measure(measured, options(tmp_path, results=results, seeds=None))

    lines = (tmp_path / "quality.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) >= 4 + 2 * len(measured)
    shown = [
        line
        for readme in (JOBS.parent / "README.md", JOBS / "results" / "README.md")
        for line in readme.read_text().splitlines()
    ]
    assert [line for line in table if line not in shown] == []
    names = tuple(f"| {row.name} |" for row in ROWS)
    assert [line for line in shown if line.startswith(names) and line not in table] == []


# ---- the whole job ------------------------------------------------------------------------------


def tiny_hetrec(folder: Path) -> None:
    """Write hetrec's files with 40 users who listen to 8 of 30 artists, of one of two kinds."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    listened = [
        (user, 2 * int(artist) + user % 2)
        for user in range(1, 41)
        for artist in rng.choice(np.arange(1, 16), 8, replace=False)
    ]
    plays = rng.integers(1, 5000, len(listened))
    tables = {
        "user_artists.dat": [
            ("userID", "artistID", "weight"),
            *((u, a, n) for (u, a), n in zip(listened, plays.tolist(), strict=True)),
        ],
        "artists.dat": [
            ("id", "name", "url", "pictureURL"),
            *((a, f"artist {a}", "u", "p") for a in range(2, 32)),
        ],
        "user_friends.dat": [("userID", "friendID"), (1, 2), (2, 1)],
        "tags.dat": [("tagID", "tagValue"), (1, "rock"), (2, "jazz")],
        "user_taggedartists.dat": [
            ("userID", "artistID", "tagID", "day", "month", "year"),
            *((u, a, 1 + a % 2, 1, 4, 2009) for u, a in listened),
        ],
    }
    for name, rows in tables.items():
        text = "".join("\t".join(str(cell) for cell in row) + "\r\n" for row in rows)
        (folder / name).write_text(text, newline="")


@pytest.mark.ray
@pytest.mark.slow
def test_a_tiny_row_runs_end_to_end_and_is_read_the_next_time(
    ray_address: str, tmp_path: Path
) -> None:
    tiny_hetrec(tmp_path / "data" / "hetrec2011-lastfm-2k")
    command = [sys.executable, str(JOBS / "quality.py"), "--data", str(tmp_path / "data")]
    command += ["--out", str(tmp_path / "out"), "--rows", "P6,P8", "--seeds", "1"]
    command += ["--text", "hashing", "--set", "train.epochs=2", "--set", "ray.num_cpus=4"]
    command += ["--set", "evaluate.bootstrap_samples=100", "--set", "ray.object_store_mb=200"]
    command += ["--set", 'train.refit="no"', "--set", "train.num_workers=0"]
    environment = {**os.environ, "PYTHONPATH": str(JOBS.parent), "RAY_ADDRESS": ray_address}

    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        for _ in range(2)
    )

    assert first.returncode == 0, first.stderr[-3000:]
    assert "P6: skipped; " in first.stdout
    assert "P8, seed 0: train " in first.stdout
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["metric"] for row in rows] == ["recall@10", "ndcg@10", "rmse"]
    assert [row["ok"] for row in rows[:2]] == [row["value"] >= row["at_least"] for row in rows[:2]]
    assert {row["peer"] for row in rows[:2]} <= {"popularity", "itemknn", "ease", "ials", "bpr"}
    table = (tmp_path / "out" / "quality.md").read_text()
    assert table.count("| P8 |") == 4
    assert (tmp_path / "out" / "p8-hashing" / "seed-0" / "data" / "friends.csv").is_file()
    assert "P8, seed 0: done before" in second.stdout
    assert second.stdout.endswith(table + "\n")


QUICK = (
    *("train.epochs=1", "train.num_workers=0", 'train.refit="no"'),
    *("evaluate.bootstrap_samples=100", "ray.num_cpus=4", "ray.object_store_mb=200"),
)


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_row_run_anew_gives_the_figures_of_the_readme(
    tmp_path: Path, ray_local: None
) -> None:
    (row,) = chosen_rows("C1")
    try:
        row.find(None)
    except DataError as error:
        pytest.skip(str(error))

    assert measure([row], options(tmp_path)) == ["C1"]

    place = Path("c1") / "seed-0" / "result.json"
    found, recorded = (
        json.loads((folder / place).read_text()) for folder in (tmp_path, JOBS / "results/quality")
    )
    assert found["key"] == recorded["key"]
    found, recorded = found["report"], recorded["report"]
    assert found["tuned"].keys() == recorded["tuned"].keys()
    for name, figures in recorded["baselines"].items():
        for task, of_task in figures.items():
            assert found["baselines"][name][task] == pytest.approx(of_task, rel=1e-3), (name, task)
    # A network that is trained on another CPU is another one in its last digits, and then in more.
    for task, metric in (("retrieval", "recall@10"), ("rating", "rmse"), ("like", "auc")):
        figure = recorded["model"][task][metric]
        assert found["model"][task][metric] == pytest.approx(figure, rel=0.02), task


@pytest.mark.ray
@pytest.mark.slow
def test_cold_items_have_no_event_in_training_and_are_all_that_is_listed(
    tmp_path: Path, ray_local: None
) -> None:
    tiny_hetrec(tmp_path / "data" / "hetrec2011-lastfm-2k")
    chosen = options(tmp_path / "out", data=tmp_path / "data", text="hashing", overrides=QUICK)

    assert measure(chosen_rows("C1h"), chosen) == ["C1h"]

    home = tmp_path / "out" / "c1h-hashing" / "seed-0"
    tree = json.loads((home / "result.json").read_text())["report"]
    assert set(tree["baselines"]) == {"random", "text_nearest", "ials_text", "mean", "bias"}
    assert tree["protocol"]["ranking"].startswith("the items that have no event before the split")
    histories = read_histories(str(home / "run" / "dataset"))
    known, cold = (set(histories.item_index[histories.split == at].tolist()) for at in (0, 2))
    assert cold and not cold & known
    # There are fewer cold artists than places: whoever ranks them lists all.
    assert len(cold) <= 10
    assert tree["model"]["retrieval"]["recall@10"] == 1.0
    bundle = load_bundle(str(home / "run" / "bundles"))
    assert not bundle.vectors.collaborative[sorted(cold)].any()
    assert bundle.vectors.content[sorted(cold)].any(axis=1).all()
    table = (tmp_path / "out" / "quality.md").read_text()
    assert "| text_nearest | interval over ials_text beyond 0 | at least |" in table


@pytest.mark.ray
@pytest.mark.slow
def test_cold_users_are_nowhere_in_their_folds_model_and_folds_are_resumed(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_hetrec(tmp_path / "data" / "hetrec2011-lastfm-2k")
    chosen = options(
        tmp_path / "out", data=tmp_path / "data", text="hashing", overrides=QUICK, folds=1
    )
    measure(chosen_rows("C2h"), chosen)
    assert "C2h, seed 0, fold-0: train " in capsys.readouterr().out

    measure(chosen_rows("C2h"), replace(chosen, folds=2))

    told = capsys.readouterr().out
    assert "C2h, seed 0: everybody done before" in told
    assert "C2h, seed 0: fold-0 done before" in told
    assert told.count(": train ") == 1
    home = tmp_path / "out" / "c2h-hashing" / "seed-0"
    left_out = _running.users_of_fold(home / "everybody" / "data", 0, 1)
    bundle = load_bundle(str(home / "fold-1" / "run" / "bundles"))
    stored = set(bundle.users.user_ids(np.arange(len(bundle.users))))
    assert len(left_out) == 4
    assert stored == {str(n) for n in range(1, 41)} - left_out
    assert bundle.popular.sum() == 36 * 8
    # The same lists, asked for by arrays of everybody's events.
    histories = read_histories(str(home / "everybody" / "run" / "dataset"))
    train, before = (histories.select(histories.split < split) for split in (1, 2))
    met = np.split(before.item_index, before.offsets[1:-1])
    lists = Recommender(bundle).rank_lists(train, k=10, exclude=met).item_index
    found = json.loads((home / "fold-1" / "result.json").read_text())["report"]
    for user, ranked in zip(range(len(histories)), lists, strict=True):
        mine = histories.rows([user])
        wanted = set(mine.item_index[mine.split == 2].tolist())
        name = histories.user_ids[user]
        assert (name in found) == (name in left_out and bool(wanted))
        if name in found:
            gain = sum(1 / np.log2(at + 2) for at, item in enumerate(ranked) if item in wanted)
            best = sum(1 / np.log2(at + 2) for at in range(len(wanted)))
            assert found[name] == pytest.approx(gain / best)
    table = (tmp_path / "out" / "quality.md").read_text()
    assert "history in the request, first 2 of 10 folds | ndcg@10 (retrieval)" in table
