"""The shape of the code: layers, a clean import, the public names, one Ray version everywhere."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtrec"

# Lower layers never import higher ones. A trailing dot stands for everything below.
LAYERS: dict[int, tuple[str, ...]] = {
    0: ("errors", "storage", "artifacts", "runlog", "runlock", "localcopy", "versions", "paths"),
    1: ("config", "configfile", "configchecks", "dataconfig", "modelconfig", "labels"),
    2: (
        *("data.", "text.", "model.", "serve."),
        *(
            "index",
            "userstore",
            "rerank",
            "metrics",
            "intervals",
            "itemitem",
            "friends",
            "factors",
            "ials",
            "svdpp",
        ),
        *("baselines", "classics", "tuning", "report"),
        *("comparison", "charts", "twins_page", "pageparts"),
        *("report_page", "report_sections", "report_text", "report_view"),
        *("query", "catalogue", "popular", "folds", "harm", "profile"),
    ),
    3: ("bundle",),
    4: (
        "recommender",
        "arrays",
        "ranker",
        "explain",
        "inputs",
        "removal",
        "dial",
        "revise",
        "answers",
        "export",
    ),
    5: (
        "rayrun",
        "progress",
        "data.pipeline",
        "data.lookup",
        "data.marked",
        "data.packed",
        "text.embed",
        "train",
        "score",
        "score_friends",
        "evaluate",
        "twins",
    ),
    6: ("stages", "chain", "doctor", "cli", "serve.app", "serve.telemetry"),
}
RAY = (*LAYERS[5], *LAYERS[6])
TORCH = (
    "model.",
    "text.encoder",
    "train",
    "export",
    "bundle",
    "recommender",
    "arrays",
    "ranker",
    "index",
    "revise",
)
HTTP = ("serve.",)


def modules() -> list[str]:
    """List the package's modules without the package's name, `__init__` files left out."""
    return [
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    ]


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(
        module == pattern or (pattern.endswith(".") and module.startswith(pattern))
        for pattern in patterns
    )


def layer_of(module: str) -> int | None:
    exact = [layer for layer, names in LAYERS.items() if module in names]
    below = [layer for layer, names in LAYERS.items() if matches(module, names)]
    return next(iter(exact + below), None)


def imports(module: str) -> Iterator[str]:
    """Yield the full names that a module imports anywhere, except for type checkers only."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Give the modules of this package that a module imports."""
    known, found = set(modules()), set()
    for name in imports(module):
        if name.split(".")[0] == "mtrec":
            inner = name.removeprefix("mtrec.")
            found |= {inner, inner.rpartition(".")[0]} & known
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_has_a_layer_and_imports_only_downwards(module: str) -> None:
    layer = layer_of(module)
    assert layer is not None, f"give mtrec.{module} a layer"
    upwards = {other: layer_of(other) for other in own_imports(module)}

    assert {other for other, level in upwards.items() if level is None or level > layer} == set()


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_ray_torch_and_http_only_where_they_belong(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}

    assert "ray" not in roots or matches(module, RAY)
    assert "torch" not in roots or matches(module, TORCH)
    assert not roots & {"fastapi", "starlette"} or matches(module, HTTP)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: own_imports(module) for module in modules()}
    while free := [module for module, needs in graph.items() if not needs & set(graph)]:
        for module in free:
            del graph[module]

    assert graph == {}


def test_importing_the_package_loads_no_framework_and_touches_nothing(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "before = set(sys.modules)\n"
        "def refuse(event, args):\n"
        "    if event == 'os.mkdir' or (event == 'open' and args[1] not in ('r', 'rb', None)):\n"
        "        raise SystemExit(f'{event} {args}')\n"
        "class Watched(dict):\n"
        "    def __getitem__(self, key): raise SystemExit(f'reads {key}')\n"
        "    get = __contains__ = __getitem__\n"
        "sys.addaudithook(refuse)\n"
        "os.environ = Watched()\n"
        "import mtrec, logging\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}"
        " & {'torch', 'ray', 'pandas', 'numpy', 'pydantic', 'fastapi'}))\n"
        "print(logging.getLogger('mtrec').handlers)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n[]\n")
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_are_these_three() -> None:
    import mtrec

    assert mtrec.__all__ == ["Recommender", "load_config", "run"]
    assert callable(mtrec.load_config)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = mtrec.nothing_of_the_kind


def test_the_public_names_can_be_loaded() -> None:
    import mtrec

    for name in mtrec.__all__:
        assert callable(getattr(mtrec, name))
    assert set(mtrec.__all__) <= set(dir(mtrec))


def test_one_ray_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pinned,) = [text for text in project["dependencies"] if text.startswith("ray[")]
    lower, upper = re.findall(r"\d+\.\d+", pinned)
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    found = set(re.findall(r"rayproject/ray:(\S+?)-", dockerfile))
    found |= set(re.findall(r"__version__ != '([^']+)'", dockerfile))
    for path in [*(ROOT / "k8s").iterdir(), *(ROOT / "cluster").iterdir()]:
        if path.is_file():
            found |= set(re.findall(r"ray(\d+\.\d+\.\d+)\b", path.read_text()))
            found |= set(re.findall(r'rayVersion: "([^"]+)"', path.read_text()))

    (version,) = found
    assert version.startswith(f"{lower}.")
    assert float(upper.split(".")[1]) == float(lower.split(".")[1]) + 1


def test_every_ray_pod_runs_the_image_that_the_dockerfile_makes() -> None:
    tag = re.search(r"docker build .* -t (\S+)", (ROOT / "cluster" / "Dockerfile").read_text())
    images = {
        image
        for path in (ROOT / "k8s").glob("ray*.yaml")
        for image in _values(yaml.safe_load(path.read_text()), "image")
    }

    assert tag is not None
    assert images == {tag[1]}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tag[1].startswith(f"mtrec:{version}-ray")


def _values(tree: object, key: str) -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values(value, key)
