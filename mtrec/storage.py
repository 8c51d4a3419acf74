"""Artifacts: a folder, local or at a URI, that is complete exactly when it has a `manifest.json`.

The manifest is written last and is the commit mark: it names every file with its size and SHA-256,
the key of the work that made it and the ids of the artifacts it was made from. A folder without one
is garbage that the next run removes. Local folders are written beside their place and renamed.
Nothing here knows what is inside an artifact.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from mtrec.errors import ArtifactError, ConfigError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Up to this size an artifact is checked by hash before it is used, above it by file size only.
HASH_CHECK_BYTES = 1 << 30
# Ends the names of files that a killed process was writing.
_UNFINISHED = ".tmp"
_TEMPORARY = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(_UNFINISHED)}$")
# Holds the key of the work that a folder on object storage is being filled by.
_RESUMABLE = ".writing"
# pyarrow's own 3 attempts give up on a server that restarts after a second. These wait about 10 s
# for one that refuses, 40 s for one that is silent: then the error is told, not waited out.
_S3_ATTEMPTS = 5
_S3_TIMEOUT_S = 5.0
# Folders are part of the names there: making one would be a request for nothing.
_FLAT = ("s3", "gcs")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one artifact is and what it was made from.

    Attributes:
        kind: `dataset`, `embeddings`, `checkpoint`, `bundle`, `predictions`, `report` or `twins`.
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


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Give the pyarrow file system and the path inside it for a local path or a URI.

    `s3://` takes credentials, region and `AWS_ENDPOINT_URL` from the `AWS_*` variables, and what
    else pyarrow knows from the URI's query: `s3://bucket/run?endpoint_override=...&scheme=http`.

    Raises:
        ConfigError: pyarrow does not know the URI's scheme or query, or it holds credentials.
        OSError: the bucket's region cannot be found out.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(path)
    try:
        if not path.startswith("s3://"):
            found, inner = fs.FileSystem.from_uri(path)
            return found, inner
        parts = urlsplit(path)
        if "@" in parts.netloc:
            raise ConfigError(
                f"the URI of s3 bucket {parts.netloc.rpartition('@')[2]} holds credentials, which "
                "the run would write into its artifacts and logs\n"
                "leave them out; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        machine = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        system = _s3(parts.netloc, parts.query, machine)
    except (OSError, ConfigError):
        raise
    except Exception as error:
        raise ConfigError(
            f'cannot open storage at "{path}": {error}\n'
            "expected a local path, s3://bucket/path or gs://bucket/path"
        ) from error
    return system, unquote(parts.netloc + parts.path).rstrip("/")


@lru_cache(maxsize=16)
def _s3(bucket: str, query: str, machine: tuple[tuple[str, str], ...]) -> fs.FileSystem:
    """Open S3 once for each bucket and environment: its connections are used again."""
    del machine  # what `from_uri` reads, so that a change of it is a new file system
    found, _ = fs.FileSystem.from_uri(f"s3://{bucket}?{query}")
    # `from_uri` finds region and endpoint, but takes no retry strategy; pickling tells the rest.
    make, (options,) = found.__reduce__()
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
    limits = {"request_timeout": _S3_TIMEOUT_S, "connect_timeout": _S3_TIMEOUT_S}
    return make({**options, **limits, "retry_strategy": retry})


def is_local(path: str) -> bool:
    """Tell whether a path is on a file system of this machine."""
    return "://" not in path or path.startswith("file://")


def absolute(path: str) -> str:
    """Make a path mean the same to other processes, whose current folder may be another one."""
    return path if "://" in path else os.path.abspath(path)


def join(base: str, *parts: str) -> str:
    """Join path parts with `/`, for local paths and URIs alike; a URI keeps its query."""
    place, query = _split_query(base)
    return "/".join([place.rstrip("/"), *(part.strip("/") for part in parts)]) + query


def base_name(path: str) -> str:
    """Give the last part of a path or URI."""
    return _split_query(path)[0].rstrip("/").rpartition("/")[2]


def parent(path: str) -> str:
    """Give the folder that holds a path or URI."""
    place, query = _split_query(path)
    return (place.rstrip("/").rpartition("/")[0] or ".") + query


def is_file(path: str) -> bool:
    """Tell whether a file is there, not a folder."""
    system, inner = filesystem(path)
    return bool(system.get_file_info(inner).type == fs.FileType.File)


def beside(path: str, inner: str) -> str:
    """Give the path or URI of another file on the file system of `path`.

    Args:
        path: a local path or a URI.
        inner: the other file, as the file system names it.
    """
    if "://" not in path:
        return inner
    return f"{path.partition('://')[0]}://{quote(inner)}" + _split_query(path)[1]


def _split_query(path: str) -> tuple[str, str]:
    place, mark, query = path.partition("?") if "://" in path else (path, "", "")
    return place, mark + query


def exists(path: str) -> bool:
    """Tell whether a file or folder is there."""
    system, inner = filesystem(path)
    return bool(system.get_file_info(inner).type != fs.FileType.NotFound)


def read_bytes(path: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    system, inner = filesystem(path)
    with system.open_input_stream(inner) as stream:
        return bytes(stream.read())


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file; it appears whole or not at all."""
    with write_file(path) as file:
        file.write(data)


@contextmanager
def write_file(path: str) -> Iterator[IO[bytes]]:
    """Yield a file to write to; it appears at `path` whole, when the body has ended, or not at all.

    What is on its way to a URI lies in a local file without a name, so even a kill leaves nothing.
    """
    system, inner = filesystem(path)
    _make_folder(system, os.path.dirname(inner))
    if not isinstance(system, fs.LocalFileSystem):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            _upload(file, system, inner)
        return
    temporary = f"{inner}.{uuid.uuid4().hex}{_UNFINISHED}"
    try:
        with open(temporary, "wb") as file:
            _try_lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, inner)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _upload(file: IO[bytes], system: fs.FileSystem, inner: str) -> None:
    try:
        with system.open_output_stream(inner) as stream:
            shutil.copyfileobj(file, stream, 1 << 20)
    except OSError:  # the storage's own: nothing was put
        raise
    except BaseException:
        # Leaving the stream, on Ctrl-C say, puts the part that it had got.
        with suppress(OSError):
            system.delete_file(inner)
        raise


def _make_folder(system: fs.FileSystem, inner: str) -> None:
    if system.type_name not in _FLAT:
        system.create_dir(inner, recursive=True)


def read_json(path: str) -> Any:
    """Read a JSON file."""
    return json.loads(read_bytes(path))


def write_json(path: str, value: object) -> None:
    """Write a JSON file with sorted keys, so that equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode("utf-8") + b"\n")


def list_files(path: str) -> list[str]:
    """List the files below a folder as sorted paths relative to it; empty if it is not there."""
    system, inner = filesystem(path)
    selector = fs.FileSelector(inner, recursive=True, allow_not_found=True)
    found = [info for info in system.get_file_info(selector) if info.type == fs.FileType.File]
    return sorted(os.path.relpath(info.path, inner) for info in found)


def remove(path: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens if it is not there."""
    system, inner = filesystem(path)
    kind = system.get_file_info(inner).type
    if kind == fs.FileType.File:
        system.delete_file(inner)
    elif kind == fs.FileType.Directory:
        system.delete_dir(inner)


def remove_abandoned(folder: str, *, recursive: bool = False) -> None:
    """Remove the temporary files of killed processes, beside those of processes still at work.

    A writer holds a lock on its temporary file, which the kernel lets go of when the writer ends,
    however it ends. At a URI there is nothing to remove.
    """
    if not is_local(folder):
        return
    place = Path(filesystem(folder)[1])
    pattern = f"*{_UNFINISHED}"
    for path in place.rglob(pattern) if recursive else place.glob(pattern):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if _TEMPORARY.search(path.name) and _try_lock(file):
                path.unlink()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system knows no locks
        return False
    return True


def hash_values(*values: object) -> str:
    """Hash JSON-like values; equal values give equal hashes on every machine."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hash_file(path: str) -> tuple[str, int]:
    """Give the SHA-256 of a file as hex and its size in bytes."""
    system, inner = filesystem(path)
    digest, size = hashlib.sha256(), 0
    with system.open_input_stream(inner) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


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
    path = path.removeprefix("file://") if local else path
    work = _work_folder(path, key if resumable else uuid.uuid4().hex) if local else path
    try:
        if not local and not (resumable and _is_being_written(path, key)):
            remove(join(path, MANIFEST))
            remove(path)
            if resumable:
                write_bytes(join(path, _RESUMABLE), key.encode())
        _make_folder(*filesystem(work))
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


def explain(error: OSError, doing: str, place: str) -> ArtifactError | None:
    """Turn a failure of the storage into an error with the remedy; None if it is something else.

    Args:
        error: what reading or writing raised, here or in another process.
        doing: what was being done, as it stands after "cannot ".
        place: the folder or URI that the user configured.
    """
    # pyarrow's object stores give no error number, and several lines of their own workings.
    text = error.strerror or (str(error).splitlines() or [""])[0][:300]
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "make room there, or set run.workdir to a larger disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "set run.workdir to a folder that can be written to"
    elif error.errno in (errno.EIO, errno.ESTALE):
        remedy = "look at the disk or the network drive"
    elif error.errno is None and type(error) is OSError and not is_local(place):
        remedy = "look at the network, the endpoint and the credentials (AWS_* variables)"
    else:
        return None
    return ArtifactError(
        f"cannot {doing} at {place}: {text}\n{remedy}; then run again: what was finished is kept"
    )


@contextmanager
def explained(doing: str, place: str) -> Iterator[None]:
    """Turn what the storage raises in the body into an error with the remedy; see `explain`."""
    try:
        yield
    except OSError as error:
        raise explain(error, doing, place) or error from error


def is_remote_failure(error: BaseException) -> bool:
    """Tell whether an object store could not be asked, or refused, whatever the file holds."""
    # pyarrow has no class of its own for it; a damaged Parquet file is an OSError as well.
    told = str(error)
    return isinstance(error, OSError) and ("AWS Error" in told or "google::cloud" in told)


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
        path = path.removeprefix("file://")
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
        if name.endswith(_UNFINISHED):
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
