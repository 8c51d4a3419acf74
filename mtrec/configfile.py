"""A run's YAML file: read with `--set a.b=value` overrides, checked, explained, written back.

Every problem becomes a line that names the key, what was found and the nearest known name. What may
stand in a file is `config.py`'s business.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mtrec.config import Config, Serving
from mtrec.errors import ConfigError

_Checked = TypeVar("_Checked", bound=BaseModel)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's YAML file, apply `a.b=value` overrides and check the whole.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, the value in YAML; list entries by number (`tasks.0.weight`)
            or, for tasks, by name (`tasks.like.weight`).

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; all problems are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}\n"
            "give the path of a YAML file, for example jobs/configs/movielens.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as data and tasks, found {tree!r:.60}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, name=str(path))


def parse_config(tree: dict[str, Any], *, name: str = "configuration") -> Config:
    """Check a configuration that is already a tree of dicts and lists.

    Raises:
        ConfigError: a key or value is wrong; all problems are named.
    """
    return _check(Config, tree, name)


def parse_serving(overrides: Sequence[str]) -> Serving:
    """Check `a.b=value` overrides of the sections `serve` and `ray`, where there is no file.

    Raises:
        ConfigError: a key or value is wrong, or of another section.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        if override.strip().partition(".")[0] not in Serving.model_fields:
            raise ConfigError(
                f"--set {override}: without --config only keys of "
                f"{' and '.join(Serving.model_fields)} count here"
            )
        _apply_override(tree, override)
    return _check(Serving, tree, "--set")


def _check(kind: type[_Checked], tree: dict[str, Any], name: str) -> _Checked:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        # A misspelt key is also a missing one: the line with the hint comes first.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] == "missing")
        lines = [_explain(problem) for problem in problems]
        shown = lines[:5] + ([f"... and {len(lines) - 5} more"] if lines[5:] else [])
        raise ConfigError(f"{name}: " + "\n".join(shown)) from error


class _Loader(yaml.SafeLoader):
    """YAML as its version 1.2 has it, where PyYAML stayed with 1.1.

    A key that comes twice is refused. Only `true` and `false` are booleans: `train.refit: no` means
    the word. Numbers are decimal, `010` is ten; a date such as `2024-01-01` is a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" comes twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than the word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, words) for tag, words in known if tag.endswith((":merge", ":null"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _words, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_words})$"), list(_first)
        )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def dump_config(config: Config) -> str:
    """Write a configuration as YAML that `load_config` reads back to an equal one."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, equals, raw = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f'--set {override}: expected key=value, for example "train.epochs=3"')
    try:
        value = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            position = _list_position(node, key)
            if position is None:
                raise ConfigError(f'--set {override}: the list has no entry "{key}"')
            if last:
                node[position] = value
            else:
                node = node[position]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            elif node.get(key) is None:
                node[key] = {}
                node = node[key]
            else:
                node = node[key]
        else:
            raise ConfigError(f'--set {override}: "{".".join(keys[:depth])}" is a plain value')


def _list_position(entries: list[Any], key: str) -> int | None:
    if key.isdigit():
        return int(key) if int(key) < len(entries) else None
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    return names.index(key) if key in names else None


def _explain(problem: Any) -> str:
    """Turn one pydantic problem into a line that names the remedy."""
    place = [str(part) for part in problem["loc"]]
    # A union's tag (the column's kind, the split's method) is in the path; users never wrote it.
    # A first or last part is a section or a key, also where it is called like a tag.
    inner = [part for part in place[1:-1] if part not in _UNION_TAGS]
    where = ".".join([*place[:1], *inner, *place[1:][-1:]])
    if problem["type"] == "extra_forbidden":
        found, parents = place[-1], place[:-1]
        return f"unknown key {where}; {_hint(found, _known_keys(parents), 'known keys')}"
    if problem["type"] == "missing":
        return f"missing key {where}"
    if problem["type"] == "union_tag_invalid":
        # The context quotes each tag.
        known = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        found, key = problem["ctx"]["tag"], problem["ctx"]["discriminator"].strip("'")
        return f'{where}.{key}: "{found}" is unknown; {_hint(found, known)}'
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = "expected keys and their values, or {} for the defaults"
    return f"{where}: {message}, found {problem['input']!r:.60}"


def _hint(found: str, known: Sequence[str], title: str = "expected one of") -> str:
    near = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    listed = ", ".join(sorted(known))
    colon = ":" if title == "known keys" else ""
    return f'did you mean "{near[0]}"?' if near else f"{title}{colon} {listed}"


_UNION_TAGS = {
    *("number", "category", "categories", "text", "time"),
    *("leave_last_out", "random", "column", "global_time", "k_fold"),
    *("full", "sampled"),
    *("retrieval", "regression", "binary", "social"),
    *("sequence", "set"),
    *("shared_bottom", "mmoe", "ple"),
}


def _known_keys(path: Sequence[str]) -> list[str]:
    """List the keys that the schema knows at a place, following its path through the models."""
    candidates: list[Any] = [Config]
    for part in path:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                if part in candidate.model_fields:
                    following += _models_in(candidate.model_fields[part].annotation)
                elif part in _UNION_TAGS:
                    tag = next(iter(candidate.model_fields.values()))
                    fields = ("kind", "method")
                    literals = [
                        getattr(candidate.model_fields[name].annotation, "__args__", ())
                        for name in fields
                        if name in candidate.model_fields
                    ]
                    if any(part in literal for literal in literals) and tag is not None:
                        following.append(candidate)
                else:
                    # A number in a list or a name in a dict: the models stay the same.
                    following.append(candidate)
        candidates = following or candidates
    return sorted({name for model in candidates for name in model.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = getattr(annotation, "__args__", ())
    return [model for argument in arguments for model in _models_in(argument)]
