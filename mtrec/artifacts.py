"""Artifacts: a folder, local or at a URI, that is complete exactly when it has a `manifest.json`.

The manifest is written last and is the commit mark: it names every file with its size and SHA-256,
the key of the work that made it and the ids of the artifacts it was made from. A folder without one
is garbage that the next run removes. Local folders are written beside their place and renamed.
Nothing here knows what is inside an artifact; `storage` reaches the files.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from pyarrow import fs

from mtrec.errors import ArtifactError
from mtrec.storage import (
    UNFINISHED,
    exists,
    explain,
    filesystem,
    hash_file,
    hash_values,
    is_local,
    join,
    list_files,
    make_folder,
    read_bytes,
    remove,
    write_bytes,
    write_json,
)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Up to this size an artifact is checked by hash before it is used, above it by file size only.
HASH_CHECK_BYTES = 1 << 30
# Holds the key of the work that a folder on object storage is being filled by.
_RESUMABLE = ".writing"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one artifact is and what it was made from.

    Attributes:
        kind: such as `dataset`, `embeddings`, `bundle`, `predictions` or `report`.
        id: new for every write, so that whatever depends on a rewritten artifact is redone.
        key: hash of the configuration and the parents' ids; the work is done if it is unchanged.
        content: hash over the names and contents of the files; equal content, equal hash.
        parents: name -> id of each artifact that this one was made from.
        files: path inside the folder -> {"sha256": hex, "bytes": size}.
        details: what else the writer wants a reader to know (counts, encoder, metrics).
    """

    kind: str
    id: str
    key: str
    content: str
    parents: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@contextmanager
def write_artifact(
    path: str,
    *,
    kind: str,
    key: str,
    parents: Mapping[str, str] | None = None,
    resumable: bool = False,
) -> Iterator["ArtifactWriter"]:
    """Write an artifact whole or not at all.

    The body writes files below `writer.path`. If it ends well, the files are hashed, the manifest
    is written and the folder takes its place; an artifact already there loses its manifest first.
    If the body raises, nothing is left of it.

    With `resumable`, files that a failed or killed body had finished stay where the next one with
    the same key finds them below `writer.path`; the body must write each file whole or not at all
    (`write_file`). Other keys' files are never seen; `remove_leftovers` takes them away.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    local = is_local(path)
    path = filesystem(path)[1] if path.startswith("file://") else path
    work = _work_folder(path, key if resumable else uuid.uuid4().hex) if local else path
    try:
        if not local and not (resumable and _is_being_written(path, key)):
            remove(join(path, MANIFEST))
            remove(path)
            if resumable:
                write_bytes(join(path, _RESUMABLE), key.encode())
        make_folder(*filesystem(work))
        _remove_unfinished(work)
    except OSError as error:
        raise explain(error, f"write {kind}", path) or ArtifactError(
            f"cannot write {kind} at {path}: {error}\n"
            "give a folder that can be written to (run.workdir)"
        ) from error
    writer = ArtifactWriter(work)
    try:
        yield writer
        _remove_unfinished(work)
        files = {
            name: dict(zip(("sha256", "bytes"), hash_file(join(work, name)), strict=True))
            for name in list_files(work)
            if name not in (MANIFEST, _RESUMABLE)
        }
        manifest = Manifest(
            kind=kind,
            id=uuid.uuid4().hex,
            key=key,
            content=hash_values({name: value["sha256"] for name, value in files.items()}),
            parents=dict(parents or {}),
            files=files,
            details=writer.details,
        )
        write_json(join(work, MANIFEST), asdict(manifest))
        if local:
            _replace_folder(work, path)
        else:
            remove(join(path, _RESUMABLE))
    except BaseException:
        with suppress(OSError):  # what failed may be the storage itself; the next run tidies up
            remove(join(work, MANIFEST))
            if not resumable:
                remove(work)
        raise


class ArtifactWriter:
    """Where an artifact is being written, and the details that its manifest will carry."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.details: dict[str, Any] = {}

    def join(self, *parts: str) -> str:
        """Give the path of a file inside the artifact."""
        return join(self.path, *parts)


def find_manifest(path: str) -> Manifest | None:
    """Read an artifact's manifest; None where there is no committed artifact.

    Raises:
        ArtifactError: the manifest cannot be read as one.
    """
    try:
        raw = read_bytes(join(path, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = Manifest(**json.loads(raw))
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{join(path, MANIFEST)} is damaged: {error}\nremove {path} and run again"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {manifest.format_version}, expected {FORMAT_VERSION}\n"
            f"remove {path} and run again, or read it with the mtrec that wrote it"
        )
    return manifest


def read_manifest(path: str, kind: str) -> Manifest:
    """Read the manifest of an artifact that must be there.

    Raises:
        ArtifactError: there is none, or it is of another kind.
    """
    manifest = find_manifest(path)
    if manifest is None:
        raise ArtifactError(
            f"{path} holds no {kind}: no {MANIFEST} found\n"
            f"run the stage that makes it, or give the folder of a {kind}"
        )
    if manifest.kind != kind:
        raise ArtifactError(f"{path} holds a {manifest.kind}, expected a {kind}")
    return manifest


def verify(path: str, manifest: Manifest, *, hashes: bool | None = None) -> None:
    """Check that an artifact's files are those that its manifest names.

    Args:
        path: the artifact's folder.
        manifest: its manifest.
        hashes: check contents too; by default only up to `HASH_CHECK_BYTES` in all.

    Raises:
        ArtifactError: a file is missing or differs; all such files are named.
    """
    total = sum(entry["bytes"] for entry in manifest.files.values())
    check_hashes = total <= HASH_CHECK_BYTES if hashes is None else hashes
    problems = []
    system, inner = filesystem(path)
    for name, entry in manifest.files.items():
        info = system.get_file_info(f"{inner}/{name}")
        if info.type != fs.FileType.File:
            problems.append(f"{name} is missing")
        elif info.size != entry["bytes"]:
            problems.append(f"{name} has {info.size} bytes, expected {entry['bytes']}")
        elif check_hashes and hash_file(join(path, name))[0] != entry["sha256"]:
            problems.append(f"{name} has another SHA-256 than when it was written")
    if problems:
        shown = "; ".join(problems[:3]) + (f"; {len(problems) - 3} more" if problems[3:] else "")
        raise ArtifactError(
            f"{manifest.kind} at {path} is damaged: {shown}\n"
            f"remove {path} and run again to make it anew"
        )


def remove_leftovers(path: str, *, key: str | None = None) -> list[str]:
    """Remove what interrupted writes left beside or at an artifact's place; give what went.

    Args:
        path: the artifact's place.
        key: what a resumable write with this key had finished stays.
    """
    gone = []
    if is_local(path):
        path = filesystem(path)[1]
        kept = os.path.basename(_work_folder(path, key)) if key is not None else None
        parent, name = os.path.split(os.path.abspath(path))
        for entry in sorted(os.listdir(parent)) if os.path.isdir(parent) else []:
            if entry.startswith((f"{name}.writing-", f"{name}.old-")) and entry != kept:
                shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)
                gone.append(os.path.join(parent, entry))
    elif key is not None and _is_being_written(path, key):
        return gone
    if exists(path) and find_manifest(path) is None:
        remove(path)
        gone.append(path)
    return gone


def _work_folder(path: str, name: str) -> str:
    """Give the local folder in which an artifact grows; a resumable one is named by its key."""
    return f"{path.rstrip('/')}.writing-{name[:16]}"


def _is_being_written(path: str, key: str) -> bool:
    """Tell whether a folder on object storage holds what a write with this key had finished."""
    try:
        found = read_bytes(join(path, _RESUMABLE))
    except FileNotFoundError:
        return False
    return found == key.encode() and find_manifest(path) is None


def _remove_unfinished(folder: str) -> None:
    """Remove the temporary files of processes that were killed."""
    for name in list_files(folder):
        if name.endswith(UNFINISHED):
            remove(join(folder, name))


def _replace_folder(work: str, path: str) -> None:
    """Move a finished folder into its place; the old one loses its manifest first."""
    if os.path.exists(path):
        remove(join(path, MANIFEST))
        old = f"{path.rstrip('/')}.old-{uuid.uuid4().hex[:8]}"
        os.rename(path, old)
        os.rename(work, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        os.rename(work, path)
