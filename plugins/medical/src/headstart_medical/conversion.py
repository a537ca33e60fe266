"""Foreign weights as safetensors in the cache, written once and whole."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from headstart.assets import cache_folder
from headstart.errors import UserError
from headstart.weights.tensors import broken

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TENSORS = "model.safetensors"


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
    root = cache_folder() / "converted"
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
