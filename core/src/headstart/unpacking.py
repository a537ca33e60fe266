"""Assets that are many small files: one tar file, unpacked in the cache once."""

from __future__ import annotations

import posixpath
import shutil
import tarfile
from typing import TYPE_CHECKING

from headstart.assets import AssetError, asset_folder, cache_folder, locked
from headstart.errors import nearest
from headstart.fetch.sources import is_inside

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.assets import Asset


def unpacked(asset: Asset, path: str) -> Path:
    """The folder with the files of a tar file among an asset's files.

    It appears only once it is whole. Another hash is another folder. What is not a
    plain file inside the archive's own folder is left out, and so are sparse files, in
    which a few bytes stand for any number.

    Args:
        asset: Fetched (:func:`headstart.assets.fetch`).
        path: Of the tar file, as the asset's manifest has it.

    Raises:
        AssetError: The asset has no such file, the archive is damaged or has no files,
            or the cache cannot be written.
    """
    hashes = {file.path: file.sha256 for file in asset.files}
    if path not in hashes:
        what = f"the asset {asset.name!r} has no file {path!r}"
        raise AssetError(what, fix=nearest(path, hashes))
    root = cache_folder() / "unpacked" / asset.name
    target = root / hashes[path][:16]
    if target.is_dir():
        return target
    draft = root / f".{target.name}.part"
    try:
        with locked(asset):
            # Another process may have been faster, or was killed.
            if target.is_dir():
                return target
            shutil.rmtree(draft, ignore_errors=True)
            try:
                _extract(asset_folder(asset) / path, draft)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise AssetError(
            f"the asset {asset.name!r} cannot be unpacked: {error}",
            where=str(root),
            fix=f"make room, or `headstart assets remove {asset.name}` and try again",
        ) from error
    return target


def _extract(path: Path, folder: Path) -> None:
    """The plain files of a tar file, into a new folder.

    Raises:
        OSError: The disk.
        tarfile.TarError: The archive is damaged, or has none.
    """
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            plain = member.isreg() and not member.issparse() and is_inside(name)
            stream = archive.extractfile(member) if plain else None
            if stream is None:
                continue
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                shutil.copyfileobj(stream, out)
    if not folder.is_dir():
        raise tarfile.TarError("there are no plain files in it")
