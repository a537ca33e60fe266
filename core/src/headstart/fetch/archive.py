"""Members of zip and tar files, read one at a time; nothing is ever unpacked whole."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

from headstart.errors import nearest
from headstart.fetch.http import CHUNK, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

DAMAGED = (
    EOFError,
    NotImplementedError,  # of zipfile, for a compression that it does not know
    RuntimeError,
    OSError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
BLOCK = tarfile.BLOCKSIZE


class Archive:
    """An open zip or tar file whose members are found by their path inside it.

    Links, devices, encrypted members and paths that leave the archive's folder are
    refused; they are known only to say so.

    Args:
        stream: The archive, seekable.
        label: Its name in messages.
        strip_top: Paths are below the one top folder (Python and npm source archives
            have one, named after the package).

    Raises:
        SourceError: Neither a zip nor a tar file, or damaged.
    """

    def __init__(
        self, stream: BinaryIO, label: str, *, strip_top: bool = False
    ) -> None:
        self._label = label
        self._strip_top = strip_top
        self._members: dict[str, tuple[int, Callable[[], IO[bytes]]]] = {}
        self._refused: dict[str, str] = {}
        try:
            magic = stream.read(4)
            stream.seek(0)
            if magic.startswith(b"PK"):
                self._index_zip(zipfile.ZipFile(stream))
            else:
                self._index_tar(tarfile.open(fileobj=stream, mode="r:*"))
        except DAMAGED as error:
            raise SourceError(f"{label} cannot be read ({error})", whole=True) from None

    def open(self, name: str) -> BinaryIO:
        """A member's bytes, seekable.

        Raises:
            SourceError: No such member, or one that is refused.
        """
        if name in self._refused:
            raise SourceError(f"{name!r} in {self._label} is {self._refused[name]}")
        if name not in self._members:
            hint = nearest(name, self._members)
            raise SourceError(f"no {name!r} in {self._label}; {hint}")
        try:
            return cast("BinaryIO", self._members[name][1]())
        except DAMAGED as error:
            raise SourceError(f"{name!r} in {self._label}: {error}") from None

    def pack(self, folder: str, out: BinaryIO, size: int) -> None:
        """Write the files of a folder (``path/``) as a tar file, of ``size`` bytes.

        It has the same bytes for the same files, whatever archive they are in: they
        are in order, without times and users.

        Raises:
            SourceError: No such folder, another size, or the archive is damaged.
            OSError: ``out`` cannot be written.
        """
        paths = sorted(path for path in self._members if path.startswith(folder))
        if not paths:
            folders = {f"{path.rpartition('/')[0]}/" for path in self._members}
            hint = nearest(folder, folders)
            raise SourceError(f"no files in {folder!r} of {self._label}; {hint}")
        parts = []
        for path in paths:
            info = tarfile.TarInfo(path.removeprefix(folder))
            info.size = self._members[path][0]
            header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            parts.append((path, header, info.size, -info.size % BLOCK))
        packed = sum(len(head) + length + fill for _, head, length, fill in parts)
        end = 2 * BLOCK + -(packed + 2 * BLOCK) % tarfile.RECORDSIZE
        # Known before anything is unpacked, which might be without end.
        if packed + end != size:
            raise SourceError(f"packs to {packed + end} bytes, {size} were expected")
        for path, header, length, fill in parts:
            out.write(header)
            with self.open(path) as stream:
                copy(stream, out, length, None)
            out.write(bytes(fill))
        out.write(bytes(end))

    def _index_zip(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if info.is_dir():
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                self._add(info.filename, "a link or a device, not a file")
            elif info.flag_bits & 1:
                self._add(info.filename, "encrypted")
            else:
                self._add(info.filename, (info.file_size, partial(archive.open, info)))

    def _index_tar(self, archive: tarfile.TarFile) -> None:
        for info in archive.getmembers():
            if info.isdir():
                continue
            if info.isreg():
                self._add(info.name, (info.size, partial(_tar_stream, archive, info)))
            else:
                self._add(info.name, "a link or a device, not a file")

    def _add(self, path: str, found: tuple[int, Callable[[], IO[bytes]]] | str) -> None:
        steps = [s for s in path.replace("\\", "/").split("/") if s not in ("", ".")]
        if path.startswith("/") or ".." in steps:
            found = f"refused: its path {path!r} leaves the archive's folder"
            steps = [s for s in steps if s != ".."]
        name = "/".join(steps[1:] if self._strip_top else steps)
        if isinstance(found, str):
            self._refused[name] = found
        else:
            self._members[name] = found


def copy(
    stream: BinaryIO, out: BinaryIO, size: int, span: tuple[int, int] | None
) -> None:
    """Copy a member, or the bytes of ``span`` in it, and never more than ``size``.

    Raises:
        SourceError: More or fewer bytes than ``size``, or the archive is damaged.
        OSError: ``out`` cannot be written.
    """
    left = size
    try:
        stream.seek(span[0] if span else 0)
    except DAMAGED as error:
        raise SourceError(f"the archive is damaged ({error})") from None
    while True:
        # One byte beyond the end shows an oversized member without unpacking it.
        want = min(CHUNK, left if span else left + 1)
        try:
            chunk = stream.read(want) if want else b""
        except DAMAGED as error:
            raise SourceError(f"the archive is damaged ({error})") from None
        if not chunk:
            break
        left -= len(chunk)
        if left < 0:
            raise SourceError(f"unpacks to more than the expected {size} bytes")
        out.write(chunk)
    if left:
        raise SourceError(f"unpacks to {size - left} bytes, {size} were expected")


def _tar_stream(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(info)
    assert stream is not None, "only regular members are asked for"
    return stream
