"""Files and folders, local or at a URI: reading, writing whole or not at all, hashing, errors.

The one place that opens file systems, so that a run means the same on a disk and on object storage,
and the one that says what to do when a disk is full or a server does not answer.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from mtrec.errors import ArtifactError, ConfigError

UNFINISHED = ".tmp"
"""Ends the names of files that a killed process was writing."""
_TEMPORARY = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(UNFINISHED)}$")
# pyarrow's own 3 attempts give up on a server that restarts after a second. These wait about 10 s
# for one that refuses, 40 s for one that is silent: then the error is told, not waited out.
_S3_ATTEMPTS = 5
_S3_TIMEOUT_S = 5.0
# Folders are part of the names there: making one would be a request for nothing.
_FLAT = ("s3", "gcs")


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
    make_folder(system, os.path.dirname(inner))
    if not isinstance(system, fs.LocalFileSystem):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            _upload(file, system, inner)
        return
    temporary = f"{inner}.{uuid.uuid4().hex}{UNFINISHED}"
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


def make_folder(system: fs.FileSystem, inner: str) -> None:
    """Make a folder and those above it, where the file system has folders."""
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
    pattern = f"*{UNFINISHED}"
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
