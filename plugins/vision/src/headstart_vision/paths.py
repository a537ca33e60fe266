"""Files and folders of images: how they are found, and how faults name them."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.errors import Fault, closest

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .tif .tiff .bmp .dib .gif .pbm .pgm"
    " .ppm .pnm .jp2 .j2k .avif .tga".split()
)
"""Endings by which image files are found in folders."""
MANY = 300
_DIGITS = re.compile(r"\d+")


def missing(path: Path, key: str = "") -> Fault:
    """There is no such file: where it would be, and what has nearly its name."""
    why, fix = f"{key} names it" if key else "", "give the path of an existing one"
    try:
        changed = path.parent.stat().st_mtime_ns
        fix = _similar(path.name, _names(path.parent, changed)) or fix
    except OSError:
        why = f"there is no folder {shown(path.parent)}"
    return Fault("there is no such file or folder", shown(path), why, fix)


@lru_cache(maxsize=4)
def _names(folder: Path, changed: int) -> tuple[str, ...]:
    """What a folder has; kept while it does not change, for many faults at once."""
    return tuple(p.name for p in folder.iterdir() if not p.name.startswith("."))


def _similar(name: str, names: Sequence[str]) -> str:
    """The hint for a file's name: another ending or case, else the nearest."""
    stem = Path(name).stem.casefold()
    for known in names:
        if Path(known).stem.casefold() == stem:
            return f"did you mean {known!r}?"
    # Comparing letter by letter with very many names takes longer than it helps.
    near = closest(name, names) if len(names) <= MANY else None
    # Another number is another image, not a slip of the pen.
    if near is None or _DIGITS.sub("", near) == _DIGITS.sub("", name):
        return ""
    return f"did you mean {near!r}?"


def shown(path: str | Path) -> str:
    """A path as people in the present folder write it."""
    here = Path.cwd()
    inside = bool(str(path)) and Path(path).is_relative_to(here)
    return str(Path(path).relative_to(here)) if inside else str(path)


def below(path: Path, root: Path) -> str:
    """An item's id: the path below a folder, with forward slashes."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def image_files(folder: Path) -> list[Path]:
    """All image files of a folder and those inside it, sorted; hidden ones left out."""
    return [path for path in all_files(folder) if path.suffix.lower() in ENDINGS]


def all_files(folder: Path) -> list[Path]:
    """All files of a folder and those inside it, sorted; hidden ones left out."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not _hidden(f))
        found += [Path(root, name) for name in sorted(names) if not _hidden(name)]
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def expanded(path: Path, faults: list[Fault]) -> list[Path]:
    """A file itself, or the image files of a folder; none there is a fault."""
    if not path.is_dir():
        return [path]
    found = image_files(path)
    if not found:
        fix = f"known endings: {', '.join(sorted(ENDINGS))}"
        faults.append(Fault("no image in this folder", shown(path), fix=fix))
    return found
