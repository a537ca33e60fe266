"""Foreign formats of weights: their file found, and converted in the cache once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import assets
from headstart.errors import UserError, nearest
from headstart.weights.tensors import broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.weights.sources import SourceContext

TENSORS = "model.safetensors"
"""The file of tensors that a conversion writes."""


def one_file(
    scheme: str, reference: str, suffix: str, context: SourceContext
) -> tuple[Path, str]:
    """The one file that a reference means, on this machine, and its licence if known.

    Args:
        scheme: Of the source, for errors.
        reference: ``asset:NAME``, or the path of a file.
        suffix: What files of this format end in.
        context: Its registry knows the assets.

    Raises:
        UserError: There is no such file, or the asset has none or several of them.
    """
    where = f"{scheme}:{reference}"
    kind, _, name = reference.partition(":")
    if kind == "asset":
        packages = [p.package for p in context.registry.plugins if p.status == "loaded"]
        asset = assets.find_asset(name, packages)
        folder = assets.fetch(asset, progress=context.progress)
        files = [folder / f.path for f in asset.files if f.path.endswith(suffix)]
        if len(files) != 1:
            raise UserError(
                f"the asset {name!r} has {len(files)} {suffix} files, one is needed",
                where=where,
                fix="" if files else f'backbone.weights = "asset:{name}"',
            )
        return files[0], asset.licence
    # Unlike pathlib's, it leaves the home of somebody who is not there as it is.
    path = Path(os.path.expanduser(reference))
    if not path.is_file():
        around = [p.name for p in path.parent.glob(f"*{suffix}")]
        inside = [p.name for p in path.glob(f"*{suffix}")]
        raise UserError(
            "this is a folder" if path.is_dir() else "there is no such file",
            where=where,
            why=f"looked for {path.absolute()}",
            fix=f"name the file: {scheme}:{path / min(inside)}"
            if inside
            else nearest(path.name, around),
        )
    return path, ""


def converted_once(name: str, write: Callable[[Path], None], what: str) -> Path:
    """A folder of that name in the cache, filled on first use.

    It appears only once it is whole.

    Args:
        name: Holds the hash of what is converted, so that another content is another
            folder.
        write: Fills an empty folder; ``model.safetensors`` is among what it writes.
        what: What is converted, for the error.

    Raises:
        UserError: The cache cannot be written, or what ``write`` raises.
    """
    root = assets.cache_folder() / "converted"
    target = root / name
    if _is_whole(target):
        return target
    from safetensors import SafetensorError

    draft = root / f".{name}.{os.getpid()}.part"
    try:
        draft.mkdir(parents=True, exist_ok=True)
        write(draft)
        # Another process may have been faster, and others read that one already.
        if not _is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache folder cannot be written: {error}",
            where=str(root),
            why=f"{what} is converted to safetensors once",
            fix="make room, or set HEADSTART_CACHE to a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _is_whole(folder: Path) -> bool:
    tensors = folder / TENSORS
    return tensors.is_file() and broken(tensors) is None
