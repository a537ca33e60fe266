"""Files and folders of volumes: how they are found, and how faults name them."""

from __future__ import annotations

import os
from pathlib import Path

from headstart.errors import DataError, Fault, nearest

ENDINGS = (".nii.gz", ".nii", ".nrrd")
"""Endings of files that hold a volume; a folder may hold a DICOM series."""
NO_SUCH = "there is no such file or folder"


def counted(number: int, noun: str) -> str:
    """``1 case``, ``2,000 cases``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shown(path: str | Path) -> str:
    """A path as people in the present folder write it."""
    here = Path.cwd()
    path = Path(path)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def stem(name: str) -> str | None:
    """A volume file's name without its ending; ``None`` for other files."""
    for ending in ENDINGS:
        if name.casefold().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return None


def missing(path: Path, key: str = "") -> Fault:
    """There is no such file: where it would be, and what has nearly its name."""
    why, fix = f"{key} names it" if key else "", "give the path of an existing one"
    try:
        names = [p.name for p in path.parent.iterdir() if not hidden(p.name)]
    except OSError:
        why = f"there is no folder {shown(path.parent)}"
    else:
        near = nearest(path.name, names)
        fix = near if near.startswith("did") else fix
    return Fault(NO_SUCH, shown(path), why, fix)


def hidden(name: str) -> bool:
    """Whether a file or folder is the system's own."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def volumes(root: Path) -> list[Path]:
    """Volume files and DICOM folders below a folder, itself included, sorted.

    Raises:
        DataError: A folder cannot be opened; its cases would be missing unseen.
    """
    from headstart_medical.dicom import is_dicom

    found: list[Path] = []
    above: dict[str, frozenset[str]] = {}
    for place, folders, names in os.walk(root, onerror=_closed, followlinks=True):
        real = os.path.realpath(place)
        around = above.get(os.path.dirname(place), frozenset())
        if real in around:
            folders.clear()  # a link back to where it is from
            continue
        above[place] = around | {real}
        folders[:] = sorted(name for name in folders if not hidden(name))
        files = [Path(place, name) for name in sorted(names) if not hidden(name)]
        found += [file for file in files if stem(file.name) is not None]
        if any(is_dicom(file) for file in files if stem(file.name) is None):
            found.append(Path(place))
    return sorted(found)


def _closed(error: OSError) -> None:
    raise DataError(
        "the folder cannot be opened",
        where=shown(error.filename or ""),
        why=error.strerror or "",
        fix="let it be read, or move it away",
    ) from None
