"""The files of a bundle, in a folder or in a zip, of which only named ones are read."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from headstart.errors import Fault, UserError
from headstart.fetch.archive import DAMAGED, copy
from headstart.fetch.http import SourceError
from headstart.fetch.sources import is_inside
from headstart.weights.tensors import file_sha256

if TYPE_CHECKING:
    from types import TracebackType

METADATA = "configs/metadata.json"
TEXT_LIMIT = 4 * 1024**2
"""Largest configuration that is read, in bytes."""
MEMBER_LIMIT = 10_000
RATIO_LIMIT = 200
"""Parameters are noise and hardly get smaller; a file of zeros gets 1,000 times so."""


class BundleFiles(Protocol):
    """What is read of a bundle; use as a context manager.

    Paths are relative to the bundle, with slashes.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def where(self, name: str) -> str:
        """The file as errors name it."""

    def names(self, folder: str) -> list[str]:
        """Paths of the files that are directly in a folder, sorted."""

    def read(self, name: str) -> bytes:
        """The content of a small file."""

    def local(self, name: str, scratch: Path) -> Path:
        """The file on the disk; what is not there yet is written into ``scratch``."""

    def sha256(self, name: str) -> str:
        """Changes when the file's content does."""


class BundleFolder:
    """A bundle that lies on the disk as it is.

    Raises:
        UserError: It has no metadata.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / METADATA).is_file():
            inside = [p.parent.parent for p in folder.glob(f"*/{METADATA}")]
            raise UserError(
                f"this is no MONAI bundle: it has no {METADATA}",
                where=str(folder),
                fix=f"did you mean {str(min(inside))!r}?" if inside else "",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def where(self, name: str) -> str:
        return str(self._folder / name)

    def names(self, folder: str) -> list[str]:
        found = (self._folder / folder).glob("*")
        return sorted(
            p.relative_to(self._folder).as_posix() for p in found if p.is_file()
        )

    def read(self, name: str) -> bytes:
        path = self._folder / name
        with path.open("rb") as file:
            content = file.read(TEXT_LIMIT + 1)
        if len(content) > TEXT_LIMIT:
            raise _too_large(str(path))
        return content

    def local(self, name: str, scratch: Path) -> Path:
        return self._folder / name

    def sha256(self, name: str) -> str:
        return file_sha256(self._folder / name)


class BundleZip:
    """A bundle in a zip; a member that leaves its folder condemns the whole.

    Raises:
        UserError: It is no zip, damaged, no bundle, or has members that are refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise UserError(
                "is no zip, or damaged", where=str(path), why=str(error)
            ) from None
        try:
            self._index()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def where(self, name: str) -> str:
        return f"{self._path}!{self._root}{name}"

    def names(self, folder: str) -> list[str]:
        start = f"{self._root}{folder}/" if folder else self._root
        inside = [n for n in self._members if n.startswith(start)]
        direct = [n for n in inside if "/" not in n.removeprefix(start)]
        return sorted(n.removeprefix(self._root) for n in direct)

    def read(self, name: str) -> bytes:
        info = self._members[self._root + name]
        if info.file_size > TEXT_LIMIT:
            raise _too_large(self.where(name))
        try:
            return self._zip.read(info)
        except DAMAGED as error:
            raise self._damaged(name, str(error)) from None

    def local(self, name: str, scratch: Path) -> Path:
        info = self._members[self._root + name]
        target = scratch / Path(name).name
        try:
            member = self._zip.open(info)
        except DAMAGED as error:
            raise self._damaged(name, str(error)) from None
        try:
            with member, target.open("wb") as out:
                copy(member, out, info.file_size, None)  # type: ignore[arg-type]
        except SourceError as error:
            raise self._damaged(name, str(error)) from None
        return target

    def sha256(self, name: str) -> str:
        # The zip is read once; its member is another file when it is another zip.
        told = f"{file_sha256(self._path)}!{name}"
        return hashlib.sha256(told.encode()).hexdigest()

    def _index(self) -> None:
        infos = self._zip.infolist()
        if len(infos) > MEMBER_LIMIT:
            raise UserError(f"has {len(infos):,} members", where=str(self._path))
        size = self._path.stat().st_size
        reasons = [(info, _refusal(info, size)) for info in infos]
        if bad := [(info, reason) for info, reason in reasons if reason]:
            shown = [
                Fault(
                    f"the member {info.filename!r:.120} {reason}",
                    str(self._path),
                    "a bundle never needs this; the archive may be an attack",
                    "do not unpack it by other means; get the bundle from its authors",
                )
                for info, reason in bad[:8]
            ]
            raise UserError(*shown)
        self._members = {info.filename: info for info in infos if not info.is_dir()}
        roots = [
            name.removesuffix(METADATA)
            for name in self._members
            if name == METADATA or name.endswith(f"/{METADATA}")
        ]
        if len(roots) != 1:
            what = "several bundles" if roots else f"no {METADATA}"
            raise UserError(
                f"is no zip of one MONAI bundle: it has {what}", where=str(self._path)
            )
        self._root = roots[0]

    def _damaged(self, name: str, why: str) -> UserError:
        return UserError(
            "is damaged", where=self.where(name), why=why, fix="fetch it again"
        )


def _refusal(info: zipfile.ZipInfo, archive: int) -> str:
    """Why a member condemns its archive of so many bytes; empty: it is harmless."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if not is_inside(info.filename.rstrip("/")):
        return "has a path that leaves the archive's folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted"
    packed = min(info.compress_size, archive)
    if info.file_size > 1024**2 and info.file_size > RATIO_LIMIT * max(1, packed):
        return f"unpacks to {info.file_size:,} bytes of {packed:,}"
    return ""


def _too_large(where: str) -> UserError:
    return UserError(f"has more than {TEXT_LIMIT:,} bytes", where=where)
