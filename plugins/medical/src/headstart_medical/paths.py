"""Files and folders of volumes: how they are found, and how faults name them."""

from __future__ import annotations

import os
from pathlib import Path

from headstart.errors import Fault, nearest

ENDINGS = (".nii.gz", ".nii", ".nrrd")
"""Endings of files that hold a volume; a folder may hold a DICOM series."""
NO_SUCH = "there is no such file or folder"


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
    """Volume files and DICOM folders below a folder, itself included, sorted."""
    from headstart_medical.dicom import is_dicom

    found: list[Path] = []
    for place, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not hidden(name))
        files = [Path(place, name) for name in sorted(names) if not hidden(name)]
        found += [file for file in files if stem(file.name) is not None]
        if any(is_dicom(file) for file in files if stem(file.name) is None):
            found.append(Path(place))
    return sorted(found)
