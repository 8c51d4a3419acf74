import re
from pathlib import Path

import pytest
import yaml

from mtrec.configfile import parse_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Give the fenced blocks of a language; "" are those without one."""
    fences = re.split(r"^```", README, flags=re.MULTILINE)
    inside = [part.split("\n", 1) for part in fences[1::2]]
    return [text for name, text in inside if name.strip() == language]


def tree() -> dict[str, str]:
    """Give path -> text of the file tree's lines; a folder's line ends with a slash."""
    block = next(block for block in blocks("") if block.startswith("mtrec/\n"))
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, text = line.strip().partition("  ")
        folders = [*folders[:depth], name]
        found["".join(folders)] = text.strip()
    return found


@pytest.mark.parametrize("path", tree())
def test_the_file_tree_names_only_what_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_file_tree_leaves_out_no_module() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("mtrec", "jobs", "cluster")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules <= set(tree())


def links() -> list[tuple[str, str]]:
    """Give the pages and what each links to."""
    found = []
    for name in ("README.md", "jobs/results/README.md", "k8s/README.md", "cluster/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found += [(name, link) for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    return found


@pytest.mark.parametrize(("page", "link"), links())
def test_links_lead_to_files(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


def test_links_to_a_place_in_a_page_lead_to_a_heading_of_it() -> None:
    text = (ROOT / "jobs" / "results" / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in headings}
    named = re.findall(r"README\.md#([^)]+)\)", text)
    assert named and set(named) <= anchors


def test_the_example_of_own_data_is_a_configuration_of_ten_lines() -> None:
    text = next(block for block in blocks("yaml") if "interactions" in block)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) <= 10
    config = parse_config(yaml.safe_load(text))
    assert [task.kind for task in config.tasks] == ["retrieval", "regression"]


@pytest.mark.parametrize("name", re.findall(r"^mtrec (\w+)", README, flags=re.MULTILINE))
def test_commands_in_the_readme_exist(name: str) -> None:
    from mtrec.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert name in known | {"config", "bundle"}
