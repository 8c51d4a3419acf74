"""Versions of a bundle: what they are called, which one a path means, and a new one written whole.

`bundles/` holds one folder for each version and `CURRENT`, which names the newest good one. What is
in a version is `bundle.py`'s affair.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from pyarrow import fs

from mtrec import artifacts, storage
from mtrec.errors import ArtifactError

KIND = "bundle"
CURRENT = "CURRENT"
"""Name of the text file in `bundles/` that holds the newest good version."""

_VERSION = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9A-Za-z_]{1,8}(-[0-9]+)?")
# What a pointer outside `bundles/` may hold besides: an absolute path or a URI, on one line.
_PLACE = re.compile(r"(/|[a-z0-9]+://)[^\x00-\x1f]+")
_POINTER_BYTES = 4096


def find_bundle(path: str) -> str:
    """Give the folder of the version that a path means: itself, or what a pointer names.

    Args:
        path: a version's folder, a folder of versions with a `CURRENT`, or a pointer: a text file
            with the name of a version beside it, or with the absolute path or URI of one.

    Raises:
        ArtifactError: the path holds neither a bundle nor a pointer to one.
        OSError: the storage cannot be asked; `storage.explained` says what to do.
    """
    if storage.is_file(path):
        pointer, versions = path, storage.parent(path)
    elif storage.exists(storage.join(path, artifacts.MANIFEST)):
        return path
    else:
        pointer, versions = storage.join(path, CURRENT), path
    try:
        raw = storage.read_bytes(pointer)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ArtifactError(
            f"{path} holds no bundle: neither {artifacts.MANIFEST} nor {CURRENT} found\n"
            "give a version's folder or the bundles/ folder of a run; `mtrec train` makes one"
        ) from error
    named = raw[:_POINTER_BYTES].decode("utf-8", "replace").strip()
    if _VERSION.fullmatch(named):
        return storage.join(versions, named)
    if pointer == path and _PLACE.fullmatch(named):
        return named
    raise ArtifactError(
        f'{pointer} is damaged: found "{named[:60]}", expected the name '
        "of a version\nwrite the name of a version's folder into it, or train again"
    )


def write_version(
    bundles: str,
    fill: Callable[[str], None],
    *,
    key: str,
    parents: Mapping[str, str] | None,
    details: Mapping[str, Any],
) -> str:
    """Write a new bundle version whole, point `CURRENT` at it and give the version's name.

    Args:
        bundles: folder or URI that holds the versions.
        fill: writes the files into an empty local folder.
        key: hash of the work; its first 8 characters end the version's name.
        parents: ids of the artifacts that it was made from.
        details: for the manifest.
    """
    version = _free_version(bundles, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{key[:8]}")
    target = storage.join(bundles, version)
    with artifacts.write_artifact(target, kind=KIND, key=key, parents=parents) as writer:
        system, inner = storage.filesystem(writer.path)
        local = storage.is_local(writer.path)
        # What is in memory maps cannot be filled in at a URI: there, in a local folder first.
        with nullcontext(inner) if local else tempfile.TemporaryDirectory() as folder:
            fill(folder)
            if not local:
                fs.copy_files(folder, inner, destination_filesystem=system)
        writer.details = {"version": version, **details}
    storage.write_bytes(storage.join(bundles, CURRENT), version.encode() + b"\n")
    return version


def remove_unfinished(bundles: str) -> None:
    """Remove versions that killed processes were writing; no server can have one of them open."""
    system, inner = storage.filesystem(bundles)
    selector = fs.FileSelector(inner, allow_not_found=True)
    for name in [info.base_name for info in system.get_file_info(selector)]:
        version = _VERSION.match(name)
        place = storage.join(bundles, name)
        is_whole = version and storage.exists(storage.join(place, artifacts.MANIFEST))
        if version and not is_whole:
            artifacts.remove_leftovers(storage.join(bundles, version[0]))
    storage.remove_abandoned(bundles)


def _free_version(bundles: str, name: str) -> str:
    version, number = name, 2
    while storage.exists(storage.join(bundles, version)):
        version, number = f"{name}-{number}", number + 1
    return version
