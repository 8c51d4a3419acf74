import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_harm import judged

from mtrec.cli import _print_twins, app, run_shell
from mtrec.config import Config
from mtrec.configfile import dump_config
from mtrec.errors import ArtifactError, ConfigError, DataError, MtrecError
from mtrec.paths import Paths


def mtrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mtrec.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


def few_lines(text: str) -> list[str]:
    lines = text.strip().splitlines()
    assert 1 <= len(lines) <= 3, text
    assert "Traceback" not in text
    return lines


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (DataError("a"), 3),
        (ArtifactError("a"), 4),
        (MtrecError("a"), 1),
        (ValueError("a"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    assert run_shell(fail) == code


def test_an_interrupted_command_says_that_it_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtrec.cli.load_config", interrupt)
    command = ["config", "check", "-c", "x.yaml"]
    assert run_shell(lambda: app(command, standalone_mode=False)) == 130
    assert capsys.readouterr().err == (
        "mtrec: interrupted; what was finished is kept, run again to go on\n"
    )


def test_help_lists_every_command_of_the_surface() -> None:
    found = {command.name or command.callback.__name__ for command in app.registered_commands}
    found |= {group.name for group in app.registered_groups}
    wanted = "demo run prepare embed train evaluate score serve doctor config bundle"
    assert set(wanted.split()) == found


def test_help_teaches_without_heavy_imports() -> None:
    done = mtrec("run", "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout
    check = "import sys, mtrec.cli; print('ray' in sys.modules, 'torch' in sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert modules.stdout.split() == ["False", "False"]


def test_a_missing_configuration_ends_with_2_and_a_remedy(tmp_path: Path) -> None:
    done = mtrec("run", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml" in few_lines(done.stderr)[0]


def test_an_unknown_key_ends_with_2_and_the_nearest_key(plant, tmp_path: Path) -> None:
    tree = yaml.safe_load(dump_config(plant(tmp_path)))
    tree["train"]["epoch"] = 3
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = mtrec("config", "check", "--config", str(path))
    assert done.returncode == 2
    assert 'did you mean "epochs"?' in few_lines(done.stderr)[-1]


def _file(config: Config, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    return str(path)


@pytest.mark.ray
def test_a_missing_data_file_ends_with_3(plant, ray_address: str, tmp_path: Path) -> None:
    path = _file(plant(tmp_path), tmp_path)
    there = ("--address", ray_address)
    done = mtrec("prepare", "-c", path, "--set", "data.interactions.path=nothing.csv", *there)
    assert done.returncode == 3
    assert "nothing.csv" in few_lines(done.stderr.split("mtrec: ")[-1])[0]


@pytest.mark.ray
def test_a_missing_column_ends_with_3_and_names_those_found(
    plant, ray_address: str, tmp_path: Path
) -> None:
    path = _file(plant(tmp_path), tmp_path)
    there = ("--address", ray_address)
    done = mtrec("prepare", "-c", path, "--set", "data.interactions.user_id=usr", *there)
    assert done.returncode == 3
    lines = few_lines(done.stderr.split("mtrec: ")[-1])
    assert "usr" in lines[0]
    assert any("user_id" in line for line in lines)


@pytest.mark.ray
def test_a_corrupted_bundle_ends_with_4(copied_run: Config) -> None:
    bundles = Path(copied_run.run.workdir) / "bundles"
    version = (bundles / "CURRENT").read_text().strip()
    weights = bundles / version / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for command in (["bundle", "verify", str(bundles)], ["serve", "--bundle", str(bundles)]):
        done = mtrec(*command)
        assert done.returncode == 4
        assert "weights.safetensors" in few_lines(done.stderr)[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "99999"], "65535"),
        (["-s", "serve.folow_s=2"], 'did you mean "follow_s"'),
    ],
)
def test_serve_refuses_settings_by_name_before_it_looks_for_a_bundle(
    arguments: list[str], told: str
) -> None:
    done = mtrec("serve", "--bundle", "nowhere", *arguments)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())


@pytest.mark.ray
def test_a_whole_bundle_is_verified_and_shown(planted_run) -> None:
    bundles = str(planted_run[1] / "bundles")
    assert mtrec("bundle", "verify", bundles).returncode == 0
    shown = mtrec("bundle", "show", bundles)
    assert shown.returncode == 0
    assert '"retrieval"' in shown.stdout


def test_twins_print_their_table_before_the_gate_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "twins" / "report"
    folder.mkdir(parents=True)
    (folder / "twins.json").write_text(json.dumps(judged("rating")))

    code = run_shell(lambda: _print_twins(Paths(str(tmp_path))))

    told = capsys.readouterr()
    assert code == 1
    assert f"twins: {folder}/twins.html" in told.out
    assert "+5.1 % [+3.0, +7.0]  harm" in told.out
    assert few_lines(told.err)[0].startswith("mtrec: joint training harms rating (rmse 1.0210")
    (folder / "twins.json").write_text(json.dumps(judged()))
    assert run_shell(lambda: _print_twins(Paths(str(tmp_path)))) == 0


def test_twins_of_all_folds_end_with_2_and_say_what_to_choose(plant, tmp_path: Path) -> None:
    path = _file(plant(tmp_path), tmp_path)
    folds = 'data.split={"method": "k_fold"}'
    done = mtrec("evaluate", "--twins", "-c", path, "--set", folds)
    assert done.returncode == 2
    assert "data.split.fold" in few_lines(done.stderr)[1]


def test_a_command_without_its_option_is_a_usage_error() -> None:
    done = mtrec("run")
    assert done.returncode == 2
    assert "--config" in done.stderr


def test_the_demo_looks_at_its_port_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = run_shell(lambda: app(["demo", "--port", str(port)], standalone_mode=False))
    assert code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["config", "check", "-c", "no.yaml"], ["bundle", "verify", "nowhere"]]
)
def test_every_command_knows_verbose(command: list[str]) -> None:
    with pytest.raises(MtrecError):
        app([*command, "--verbose"], standalone_mode=False)


def test_the_demo_outside_of_a_checkout_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_shell(lambda: app(["demo", "--no-serve"], standalone_mode=False)) == 2
    assert "run this in a checkout of mtrec" in capsys.readouterr().err
