from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit"
SOUND = {"name": "sound", "version": "1", "vulns": []}
UNSAFE = {
    "name": "unsafe",
    "version": "2.0",
    "vulns": [{"id": "CVE-2026-1", "fix_versions": ["2.1", "3.0"]}],
}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = spec_from_loader("audit", SourceFileLoader("audit", str(SCRIPT)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_unsafe_package_fails_and_is_named_with_its_remedy(audit: Any) -> None:
    lines, status = audit.verdict([SOUND, UNSAFE])

    assert status == 1
    assert lines[0] == "unsafe 2.0: CVE-2026-1, mended in 2.1, 3.0"


def test_sound_packages_pass_and_unknown_ones_are_named(audit: Any) -> None:
    lines, status = audit.verdict([SOUND, UNKNOWN])

    assert (len(lines), status) == (1, 0)
    assert "1 packages looked up, 0 advisories; not looked up: torch" in lines[0]


def test_an_audit_that_looked_nothing_up_says_so(audit: Any) -> None:
    (line,), status = audit.verdict([UNKNOWN])

    assert status == 0
    assert "SKIPPED" in line
