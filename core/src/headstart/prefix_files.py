"""The folders of frozen-prefix caches: locked, sealed, checked, listed, pruned.

Torch-free, so that `headstart cache` answers at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from headstart.assets import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INDEX = "index.json"
SEAL = "seal"


def caches_root() -> Path:
    """Where all of them are."""
    return cache_folder() / "prefix"


def partial_folder(folder: Path) -> Path:
    """Where a cache is while it is made; its lock is held as long."""
    return folder.with_name(f".{folder.name}.partial")


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a cache's folder, there or to be made, alone among all processes.

    Args:
        folder: The cache.
        waiting: Called when another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = _take(folder, wait=False)
    if handle is None:
        waiting()
        handle = _take(folder, wait=True)
    assert handle is not None
    with handle:
        yield


def _take(folder: Path, *, wait: bool) -> IO[str] | None:
    path = _lock_file(folder)
    while True:
        handle = path.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.close()
            return None
        # Whoever held it may have deleted the file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(handle.fileno())):
                return handle
        handle.close()


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def write_index(folder: Path, about: dict[str, Any]) -> None:
    """Finish a cache: what it holds, and size and CRC-32 of every file."""
    files = {
        path.name: [path.stat().st_size, _checksum(path)]
        for path in sorted(folder.iterdir())
    }
    index = {**about, "files": files}
    (folder / INDEX).write_text(json.dumps({**index, SEAL: _seal(index)}, indent=1))


def read_index(folder: Path) -> dict[str, Any]:
    """What a cache holds."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return index


def damage(folder: Path) -> str:
    """How a cache differs from what was written, in words; empty if it does not."""
    try:
        index = read_index(folder)
        if index.pop(SEAL) != _seal(index):
            return f"{INDEX} was changed"
        for name, (size, checksum) in index["files"].items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, {size} were written"
            if _checksum(folder / name) != checksum:
                return f"{name} was changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX} cannot be read"
    return ""


def _seal(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


@dataclass(frozen=True)
class StoredCache:
    """A cache on disk.

    Attributes:
        folder: Its name is the hash over all that it depends on.
        bytes: What it takes.
        used: When it was last read, seconds since the epoch.
        about: Its index; empty when that cannot be read.
    """

    folder: Path
    bytes: int
    used: float
    about: dict[str, Any]


def stored_caches() -> list[StoredCache]:
    """Every cache on disk, the one unused for longest first."""
    found = []
    for path in caches_root().glob(f"*/{INDEX}"):
        about: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            about = read_index(path.parent)
        with contextlib.suppress(FileNotFoundError):
            used = path.stat().st_mtime
            size = folder_bytes(path.parent)
            found.append(StoredCache(path.parent, size, used, about))
    return sorted(found, key=lambda cache: cache.used)


def prune_caches(keep_bytes: int = 0) -> list[StoredCache]:
    """Delete caches, the one unused for longest first, until so much is left.

    One that a process is making or opening stays; what killed processes left goes.

    Returns:
        The caches that were deleted.
    """
    caches = stored_caches()
    left = sum(cache.bytes for cache in caches)
    gone = []
    for cache in caches:
        if left <= keep_bytes:
            break
        if _delete(cache.folder):
            left -= cache.bytes
            gone.append(cache)
    whole = {cache.folder for cache in stored_caches()}
    for lock in caches_root().glob("*.lock"):
        if lock.with_suffix("") not in whole:
            _delete(lock.with_suffix(""))
    return gone


def _delete(folder: Path) -> bool:
    """Delete a cache, what is left of making it, and its lock, unless one holds it."""
    handle = _take(folder, wait=False)
    if handle is None:
        return False
    with handle:
        for path in (folder, partial_folder(folder)):
            shutil.rmtree(path, ignore_errors=True)
        _lock_file(folder).unlink(missing_ok=True)
    return True


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def size_text(count: int) -> str:
    """A size for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
