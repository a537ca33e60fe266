"""Assets that are many small files: one tar file, unpacked in the cache once."""

from __future__ import annotations

import os
import shutil
import tarfile
from typing import TYPE_CHECKING

from headstart.assets import AssetError, asset_folder, cache_folder
from headstart.fetch.sources import is_inside

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.assets import Asset


def unpacked(asset: Asset, path: str) -> Path:
    """The folder with the files of a tar file among an asset's files.

    It appears only once it is whole. Another hash is another folder, and what is not a
    plain file inside the archive's own folder is left out.

    Args:
        asset: Fetched (:func:`headstart.assets.fetch`).
        path: Of the tar file, as the asset's manifest has it.

    Raises:
        AssetError: The archive is damaged, or the cache cannot be written.
    """
    sha256 = next(file.sha256 for file in asset.files if file.path == path)
    root = cache_folder() / "unpacked" / asset.name
    target = root / sha256[:16]
    if target.is_dir():
        return target
    draft = root / f".{target.name}.{os.getpid()}.part"
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with tarfile.open(asset_folder(asset) / path, "r:") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or not is_inside(member.name):
                    continue
                file = draft / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as out:
                    shutil.copyfileobj(stream, out)
        # Another process may have been faster.
        if not target.is_dir():
            draft.rename(target)
    except (OSError, tarfile.TarError) as error:
        raise AssetError(
            f"the asset {asset.name!r} cannot be unpacked: {error}",
            where=str(root),
            fix=f"make room, or `headstart assets remove {asset.name}` and try again",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
