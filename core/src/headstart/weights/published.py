"""Files of weights that a library publishes, downloaded into the cache once."""

from __future__ import annotations

import errno
import fcntl
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headstart.assets import cache_folder, offline
from headstart.errors import UserError
from headstart.fetch.http import Http, SourceError
from headstart.weights.tensors import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart.fetch.http import Progress


@contextmanager
def cache_place(name: str) -> Iterator[Path]:
    """A folder of the cache that one process at a time fills.

    Args:
        name: Path inside the cache, e.g. ``torchvision/NAME``.

    Raises:
        UserError: It cannot be written.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            yield folder
    except OSError as error:
        raise UserError(
            f"the cache folder cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="make room, or set HEADSTART_CACHE to a folder that can be written",
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        # Nobody fills a folder that cannot be written; what is in it serves.
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def published_file(
    url: str, folder: Path, progress: Progress | None, otherwise: str
) -> Path:
    """The file behind a URL, in a folder; downloaded unless it is there.

    Where its name states its hash, as torch's hub has it, the file is held against it.

    Args:
        url: Its last part is the file's name.
        folder: As :func:`cache_place` gives it.
        progress: Told about the transfer.
        otherwise: What to do where the server cannot be reached.

    Raises:
        UserError: It cannot be had, or it is another file.
        OSError: The disk.
    """
    path = folder / Path(urlsplit(url).path).name
    if not path.is_file():
        if offline():
            raise UserError(
                "these weights are not in the cache and the network is forbidden",
                where=str(path),
                why="HEADSTART_OFFLINE is set",
                fix="fetch them where there is a network, and put the file there",
            )
        try:
            Http(progress=progress).download(url, path)
        except SourceError as error:
            raise UserError(
                "the weights cannot be fetched",
                where=url,
                why=str(error),
                fix=f"run it again (what has arrived is kept), put the file by hand "
                f"into {folder}, or {otherwise}",
            ) from error
    stated = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    digest = file_sha256(path) if stated else ""
    if stated and not digest.startswith(stated[1]):
        path.unlink()
        raise UserError(
            f"{path.name} has a wrong hash and was deleted",
            where=url,
            why=f"its name states {stated[1]}, the file has {digest}",
            fix="run it again; if it stays so, the server or what is between is at "
            "fault",
        )
    return path
