"""Single-task twins: which run a twin is, and a run with its twins from end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundle import small_config

from mtrec import artifacts
from mtrec.chain import run
from mtrec.config import Config
from mtrec.configfile import load_config, parse_config
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import ConfigError
from mtrec.modelconfig import FactorsTerm, IalsTerm, ItemItemTerm, RecencyTerm


def test_a_twin_is_the_same_run_in_which_one_task_alone_has_a_loss() -> None:
    from mtrec.twins import twin_config

    config = small_config()
    twin = twin_config(config, config.task("stars"))
    assert {task.name: task.weight for task in twin.tasks} == {"click": 0, "stars": 1, "like": 0}
    assert twin.run.workdir == f"{config.run.workdir}/twins/stars"
    changed = {"run", "tasks", "train", "score"}
    for section in set(type(config).model_fields) - changed:
        assert getattr(twin, section) == getattr(config, section)
    assert twin.train == config.train.model_copy(update={"monitor": "stars/rmse"})
    assert twin.run.seed == config.run.seed


def test_a_twin_is_not_given_terms_that_its_task_has_no_use_for() -> None:
    from mtrec.twins import twin_config

    config = small_config()
    of_lists = {"item_item": ItemItemTerm(), "ials": IalsTerm(), "recency": RecencyTerm()}
    terms = {**of_lists, "factors": FactorsTerm(column="x")}
    model = config.model.model_copy(update=terms)
    config = config.model_copy(update={"model": model})
    twins = {task.name: twin_config(config, task).model for task in config.tasks}

    assert twins["click"] == model.model_copy(update={"factors": None})
    for name in ("stars", "like"):
        assert twins[name] == model.model_copy(update=dict.fromkeys(of_lists))


@pytest.mark.parametrize(
    ("task", "monitor"), [("click", "click/ndcg@10"), ("stars", "stars/rmse"), ("like", "like/auc")]
)
def test_a_twins_own_figure_picks_its_epoch(task: str, monitor: str) -> None:
    from mtrec.twins import twin_config

    config = small_config()
    twin = twin_config(config, config.task(task))
    assert twin.train.monitor == monitor
    assert parse_config(twin.model_dump(mode="json")) == twin


def test_a_twin_keeps_its_weight_and_blends_no_task_without_a_loss_into_its_lists() -> None:
    from mtrec.twins import twin_config

    config = small_config(weights={"click": 1.0, "like": 0.5})
    heavy = config.tasks[0].model_copy(update={"weight": 3.0})
    config = config.model_copy(update={"tasks": [heavy, *config.tasks[1:]]})
    twin = twin_config(config, heavy)
    assert twin.task("click").weight == 3.0
    assert twin.score.weights == {}


def test_twins_of_all_folds_are_refused_before_any_work(tmp_path: Path) -> None:
    config = small_config()
    split = KFoldSplit(method="k_fold")
    folds = config.model_copy(
        update={
            "run": config.run.model_copy(update={"workdir": str(tmp_path / "run")}),
            "data": config.data.model_copy(update={"split": split}),
        }
    )
    with pytest.raises(ConfigError, match="choose a fold"):
        run(folds, stages=["evaluate"], twins=True)
    assert not (tmp_path / "run").exists()


def test_twins_without_evaluate_are_refused() -> None:
    with pytest.raises(ConfigError, match="compared after evaluate"):
        run(small_config(), stages=["train"], twins=True)


@pytest.mark.ray
@pytest.mark.slow
def test_twins_are_trained_compared_and_kept(
    plant: Callable[..., Config], tmp_path: Path, ray_local: None
) -> None:
    config = plant(tmp_path, friends=5, train={"epochs": 2, "batch_size": 16, "num_workers": 0})
    baselines = ["popularity", "bias", "adamic_adar"]
    config = config.model_copy(
        update={
            # One of each metric: of lists, of errors, of links.
            "tasks": [task for task in config.tasks if task.kind != "binary"],
            "evaluate": config.evaluate.model_copy(update={"baselines": baselines}),
        }
    )
    names = [f"twin of {task.name}" for task in config.tasks]
    stages = ["prepare", "embed", "train", "evaluate"]
    assert list(run(config, stages=stages, twins=True).done) == [*stages, *names, "twins"]

    workdir = Path(config.run.workdir)
    tree = json.loads((workdir / "twins" / "report" / "twins.json").read_text())
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert list(tree["tasks"]) == sorted(task.name for task in config.tasks)
    assert tree["tasks"]["friends"]["metric"] == "ndcg@10"
    for name, entry in tree["tasks"].items():
        assert entry["joint"] == pytest.approx(report["model"][name][entry["metric"]], rel=1e-6)
        assert entry["joint"] != entry["twin"]
        bounds = report["intervals"]["model"][name][entry["metric"]]
        assert entry["joint_interval"] == pytest.approx(bounds, rel=1e-6)
    assert "</html>" in (workdir / "twins" / "report" / "twins.html").read_text()
    # A twin's configuration runs, and what it reads is the joint run's.
    for name, monitor in (("rating", "rating/rmse"), ("friends", "friends/ndcg@10")):
        twin = workdir / "twins" / name
        assert load_config(str(twin / "config.yaml")).train.monitor == monitor
        assert not (twin / "dataset").exists()
    manifest = artifacts.read_manifest(str(workdir / "twins" / "report"), "twins")
    assert {"dataset", "bundle", *names} == set(manifest.parents)
    # What each twin learns is its own task alone.
    for name in ("retrieval", "friends"):
        metrics = next((workdir / "twins" / name / "bundles").glob("*/metrics.json"))
        last = json.loads(metrics.read_text())["history"][-1]
        assert last["loss"] == pytest.approx(last[f"loss/{name}"])

    again = run(config, stages=["evaluate"], twins=True)
    assert again.done == {}
    assert again.skipped == ["evaluate", *names, "twins"]
    # What the gate allows is no part of the report.
    allowed = config.evaluate.model_copy(update={"max_harm": 0.5})
    lenient = config.model_copy(update={"evaluate": allowed})
    assert run(lenient, stages=["evaluate"]).done == {}
