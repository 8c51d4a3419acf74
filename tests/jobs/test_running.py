"""Where a row's run lies, which configuration it has, and what is read instead of run."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import _running
from _rows import chosen_rows
from _running import Options

from mtrec.configfile import load_config
from mtrec.modelconfig import RecencyTerm


def options(out: Path, **changes: Any) -> Options:
    return Options(
        **{"data": None, "out": out, "seeds": 1, "text": None, "overrides": ()} | changes
    )


def test_a_seed_writes_below_its_own_folder_and_shares_the_vectors(tmp_path: Path) -> None:
    home = tmp_path / "odd: #name" / "p3" / "seed-2"
    chosen = options(tmp_path, text="hashing", overrides=("train.epochs=7", "run.seed=9"))

    config = _running.configure(chosen_rows("P3")[0], 2, chosen, home=home, root=home / "data")

    assert (config.run.seed, config.run.workdir) == (2, str(home / "run"))
    assert (config.data.root, config.text.store) == (
        str(home / "data"),
        str(tmp_path / "embeddings"),
    )
    assert (config.text.encoder, config.train.epochs) == ("hashing", 7)


def test_each_user_is_in_one_fold(tmp_path: Path) -> None:
    lines = "".join(f"{n % 23},{n},train\n" for n in range(100))
    (tmp_path / "interactions.csv").write_text("user_id,item_id,split\n" + lines)

    folds = [_running.users_of_fold(tmp_path, 0, fold) for fold in range(10)]

    assert sorted(user for fold in folds for user in fold) == sorted(str(n) for n in range(23))
    assert sorted(len(fold) for fold in folds) == [2] * 7 + [3] * 3
    assert folds != [_running.users_of_fold(tmp_path, 1, fold) for fold in range(10)]


def test_a_result_that_is_given_is_read_and_a_new_one_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = chosen_rows("P8")
    first = options(tmp_path / "first", results=tmp_path / "results")
    home = _running.home_of(row, 0, first)
    config = _running.configure(row, 0, first, home=home, root=home / "data")
    path, result, is_done = _running._open_result(home / "result.json", "quality", config, first)
    assert not is_done
    result["report"] = {"model": {"plays": {"rmse": 0.5}}, "curves": [1, 2, 3]}
    _running._write_result(path, result, first)

    # What was measured before anybody asked for its results is added as well.
    shared = tmp_path / "results" / "p8" / "seed-0" / "result.json"
    added = shared.read_bytes()
    shared.unlink()
    _running.run_seed(row, 0, first)
    assert shared.read_bytes() == added
    # Elsewhere, without the data.
    second = replace(first, out=tmp_path / "second")
    assert _running.run_seed(row, 0, second)["report"] == {"model": {"plays": {"rmse": 0.5}}}
    assert "P8, seed 0: done before" in capsys.readouterr().out
    for other, seed in ((replace(second, overrides=("train.epochs=3",)), 0), (second, 1)):
        with pytest.raises(_running.DataAbsentError):
            _running.run_seed(row, seed, other)


def test_a_key_that_is_absent_is_in_no_results_key() -> None:
    config = load_config(_running.CONFIGS / "p5.yaml")
    assert config.model.recency is None

    def absent(tree: Any) -> list[str]:
        return [k for k, v in tree.items() if v is None or (isinstance(v, dict) and absent(v))]

    assert absent(_running._without_places(config)) == []
    term = {"model": config.model.model_copy(update={"recency": RecencyTerm()})}
    other = _running._without_places(config.model_copy(update=term))
    assert other != _running._without_places(config)


def test_how_fast_it_was_worked_out_is_in_no_results_key() -> None:
    config = load_config(_running.CONFIGS / "p6.yaml")
    speed = ["train.num_workers=2", "train.use_gpu=yes", "text.device=cuda", "score.batch_size=8"]
    fast = load_config(_running.CONFIGS / "p6.yaml", speed)
    assert fast.train.num_workers == 2
    assert _running._without_places(fast) == _running._without_places(config)
    # As of results of before: two workers changed the key, one did not.
    assert _running._without_places(config)["train"]["num_workers"] == 1
    # What the gate of the twins says is part of their result.
    strict = load_config(_running.CONFIGS / "p6.yaml", ["evaluate.max_harm=0.5"])
    assert _running._without_places(strict) != _running._without_places(config)


def test_a_stage_that_was_interrupted_and_resumed_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = chosen_rows("P8")
    chosen = options(tmp_path)
    config = _running.configure(row, 0, chosen, home=tmp_path, root=tmp_path / "data")
    fails = ["train"]

    def run(_: object, stages: tuple[str]) -> Any:
        if fails and stages[0] == fails[0]:
            fails.clear()
            raise KeyboardInterrupt
        # What was done before is up to date.
        done = {} if stages[0] in finished else {stages[0]: 7.0}
        finished.extend(stages)
        return SimpleNamespace(done=done)

    finished: list[str] = []
    monkeypatch.setattr(_running.mtrec, "run", run)
    place = tmp_path / "result.json"
    path, result, _ = _running._open_result(place, "quality", config, chosen)
    with pytest.raises(KeyboardInterrupt):
        _running._run_stages(config, _running.STAGES, "P8", path, result)

    path, result, is_done = _running._open_result(place, "quality", config, chosen)
    assert not is_done
    _running._run_stages(config, _running.STAGES, "P8", path, result)

    assert result["seconds"] == {"prepare": 7.0, "embed": 7.0, "evaluate": 7.0}
    assert "unfinished" not in result
