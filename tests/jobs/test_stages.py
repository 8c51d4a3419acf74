"""The jobs on a real cluster, submitted and deployed with the words of the manifests."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

from local_cluster import LocalCluster, free_ports

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "embed", "train", "evaluate", "score")
KEY = "a-key-for-this-test"
Tree = dict[str, Any]


def small_run(folder: Path) -> Tree:
    """Write a small data set below `folder` and give a run over it, two epochs long."""
    from mtrec.data.sources import planted

    tree = planted(folder, num_users=40, num_items=24)
    tree["train"] = {"epochs": 2, "batch_size": 16}
    tree["evaluate"] = {"baselines": ["popularity", "ease", "bias"], "bootstrap_samples": 100}
    return tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out what the image has in its working folder, with a small run under the demo's name."""
    made = tmp_path_factory.mktemp("image")
    shutil.copytree(ROOT / "jobs", made / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    tree = small_run(made / "data")
    shipped = yaml.safe_load((ROOT / "jobs" / "configs" / "movielens.yaml").read_text())
    tree["run"]["workdir"] = shipped["run"]["workdir"]
    (made / "jobs" / "configs" / "movielens.yaml").write_text(yaml.safe_dump(tree))
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[LocalCluster]:
    """Start what the manifests ask for: a head without CPUs and a worker, in the image's folder."""
    with LocalCluster(
        nodes=2, head_cpus=0, num_cpus=4, cwd=folder, env={"MTREC_API_KEY": KEY}
    ) as started:
        yield started


@pytest.fixture(scope="module")
def finished_job(cluster: LocalCluster, folder: Path) -> Path:
    """Submit the RayJob's entrypoint as it stands, with the command that the submitter runs."""
    spec = yaml.safe_load((ROOT / "k8s" / "rayjob.yaml").read_text())["spec"]
    submit = ["ray", "job", "submit", "--address", cluster.job_url]
    submit += ["--entrypoint-num-cpus", str(spec["entrypointNumCpus"])]
    run([*submit, "--", *shlex.split(spec["entrypoint"])])
    return folder / "runs" / "demo"


@pytest.mark.ray
@pytest.mark.slow
def test_the_rayjobs_entrypoint_leaves_every_artifact(finished_job: Path) -> None:
    from mtrec import artifacts

    for name, kind in (
        ("dataset", "dataset"),
        ("embeddings", "embeddings"),
        ("report", "report"),
        ("predictions", "predictions"),
    ):
        manifest = artifacts.read_manifest(str(finished_job / name), kind)
        artifacts.verify(str(finished_job / name), manifest)
    assert (finished_job / "bundles" / "CURRENT").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_the_rayservices_config_is_deployed_as_it_stands_and_answers(
    cluster: LocalCluster, finished_job: Path
) -> None:
    service = yaml.safe_load((ROOT / "k8s" / "rayservice.yaml").read_text())
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    # Serve keeps the port that it was started with: a free one, 8000 may be someone else's.
    (port,) = free_ports(1)
    start = ["serve", "start", "--address", cluster.address, "--http-port", str(port)]
    run([*start, "--http-host", "127.0.0.1"])
    applications = f"{cluster.job_url}/api/serve/applications/"

    # What the operator does with serveConfigV2.
    assert httpx2.put(applications, json=config, timeout=60).status_code == 200

    def status() -> str:
        found = httpx2.get(applications, timeout=30).json()["applications"]["mtrec"]
        assert found["status"] != "DEPLOY_FAILED", found["message"]
        return str(found["status"])

    wait_for(lambda: status() == "RUNNING", 120)
    url, body = f"http://127.0.0.1:{port}/v1/recommend", {"user_id": "u00001", "k": 5}
    answer = httpx2.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    assert answer.status_code == 200, answer.text
    scores = [entry["score"] for entry in answer.json()["recommendations"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert httpx2.post(url, json=body, timeout=30).status_code == 401


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_pipeline_gives_the_same_figures_as_mtrec_run(
    cluster: LocalCluster, finished_job: Path, folder: Path, tmp_path: Path
) -> None:
    config = folder / "jobs" / "configs" / "movielens.yaml"
    changes = [f"run.workdir={tmp_path / 'here'}", "train.num_workers=0"]
    command = ["mtrec", "run", "--config", str(config), "--address", cluster.address]
    run([*command, *(part for change in changes for part in ("--set", change))])

    submitted, here = report(finished_job), report(tmp_path / "here")
    assert submitted.keys() == here.keys()
    assert len(here) > 20
    assert submitted == pytest.approx(here, rel=1e-6, abs=1e-6)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_sent_with_its_working_dir_prepares_the_same_dataset(
    cluster: LocalCluster, finished_job: Path, folder: Path, tmp_path: Path
) -> None:
    from mtrec import artifacts

    shutil.copytree(folder / "jobs", tmp_path / "source" / "jobs")
    submit = ["ray", "job", "submit", "--address", cluster.job_url]
    submit += ["--working-dir", str(tmp_path / "source"), "--", "python", "jobs/prepare.py"]
    submit += [
        "--config",
        "jobs/configs/movielens.yaml",
        "--set",
        f"run.workdir={tmp_path / 'out'}",
    ]
    run(submit)

    first = artifacts.read_manifest(str(finished_job / "dataset"), "dataset")
    second = artifacts.read_manifest(str(tmp_path / "out" / "dataset"), "dataset")
    assert first.id != second.id
    assert first.content == second.content


@pytest.mark.parametrize(
    ("job", "command"),
    [*((stage, stage) for stage in STAGES), ("pipeline", "run")],
)
def test_each_job_is_its_mtrec_command_with_the_same_exit_codes(
    job: str, command: str, tmp_path: Path
) -> None:
    script = str(ROOT / "jobs" / f"{job}.py")
    missing = ["--config", str(tmp_path / "none.yaml")]

    ours = subprocess.run([sys.executable, script, *missing], capture_output=True, check=False)
    theirs = subprocess.run(
        [executable("mtrec"), command, *missing], capture_output=True, check=False
    )

    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
    assert ours.returncode == 2
    assert b"cannot read the configuration" in ours.stderr
    assert b"Traceback" not in ours.stderr


def executable(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def run(command: list[str]) -> None:
    done = subprocess.run(
        [executable(command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def report(workdir: Path) -> dict[str, float]:
    """Give every figure of a report by its path, times left out."""
    found: dict[str, float] = {}

    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        elif isinstance(node, list):
            for position, value in enumerate(node):
                walk(value, f"{path}/{position}")
        elif isinstance(node, int | float) and "seconds" not in path:
            found[path] = float(node)

    tree = json.loads((workdir / "report" / "report.json").read_text())
    for section in ("model", "baselines", "slices", "intervals"):
        walk(tree[section], section)
    return found


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.5)
