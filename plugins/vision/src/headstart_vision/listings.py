"""Where images and their labels are listed: class folders, CSV files, IDX files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import DataError, Fault, nearest
from headstart_vision.idx import read_idx
from headstart_vision.items import Item
from headstart_vision.paths import ENDINGS, all_files, below, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings, Split
    from headstart_vision.items import Parts
    from headstart_vision.settings import ClassificationSettings

TABLES = (".csv", ".tsv", ".txt")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
_IDX = re.compile(
    r"(?:.*-)?(train|test|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?"
)


def read_listing(
    path: Path, key: str, settings: ClassificationSettings, findings: Findings
) -> Parts:
    """Images and labels of a folder, a CSV file or IDX files; see :class:`Item`.

    Targets are a label's name, for ``multi-label`` a list of names, ``None`` where
    there is a fault.

    Args:
        path: It exists.
        key: The setting that named it.
        settings: Columns and kind.
        findings: Takes the faults.
    """
    folder = path if path.is_dir() else path.parent
    wanted = sorted(folder.iterdir()) if path.is_dir() else _pair(path)
    files = [(file, m) for file in wanted if (m := _IDX.fullmatch(file.name))]
    if files:
        return _idx(files, settings, findings)
    if path.is_dir():
        return _folders(path, settings, findings)
    if path.suffix.lower() in TABLES:
        return {"train": _table(path, settings, findings)}
    known = "a folder, .csv, .tsv, or *-images-idx3-ubyte(.gz)"
    what = f"the format of {path.name!r} is not known by its ending"
    findings.fatal.append(Fault(what, key, f"known: {known}"))
    return {}


# Class folders


def _folders(root: Path, settings: ClassificationSettings, findings: Findings) -> Parts:
    if settings.kind == "multi-label":
        why = "an image is in one folder, so it has one label"
        fix = 'give a CSV file with several labels a row, or data.kind="single-label"'
        what = "class folders cannot give several labels"
        findings.fatal.append(Fault(what, shown(root), why, fix))
        return {}
    inside = {p.name: p for p in root.iterdir() if p.is_dir()}
    by_split = {
        SPLIT_NAMES[name.casefold()]: folder
        for name, folder in sorted(inside.items())
        if name.casefold() in SPLIT_NAMES and _holds_folders(folder)
    }
    if "train" not in by_split:
        return {"train": _classes(root, root, findings)}
    strange = sorted(
        name
        for name, folder in inside.items()
        if folder not in by_split.values() and any(all_files(folder))
    )
    if strange:
        what = f"not read: {', '.join(strange[:8])}"
        why = "beside folders named train, val or test, others are no classes"
        findings.warnings.append(Fault(what, shown(root), why))
    return {
        split: _classes(root, folder, findings) for split, folder in by_split.items()
    }


def _holds_folders(folder: Path) -> bool:
    """Whether it is a split and not a class of that name (a dataset of vehicles)."""
    entries = list(folder.iterdir())
    return any(e.is_dir() for e in entries) and not any(
        e.suffix.lower() in ENDINGS for e in entries
    )


def _classes(root: Path, folder: Path, findings: Findings) -> list[Item]:
    items = []
    stray: list[Item] = []
    other: Counter[str] = Counter()
    for file in all_files(folder):
        if file.suffix.lower() not in ENDINGS:
            other[file.suffix or file.name] += 1
            continue
        inside = file.relative_to(folder).parts
        item = Item(below(file, root), str(file))
        if len(inside) > 1:
            item.target = inside[0]
        else:
            stray.append(item)
        items.append(item)
    if items and len(stray) == len(items):
        what = f"no class folders: {len(items)} images lie in one folder"
        fix = "make a folder for each class, or give a CSV file of images and labels"
        findings.fatal.append(Fault(what, shown(folder), fix=fix))
        return []
    for item in stray:
        why = "the image is in no class folder"
        fix = f"move it into one, or remove it from {shown(folder)}"
        fault = Fault("label missing", item.where, why, fix)
        findings.sample(*item.place, fault)
    if other:
        kinds = ", ".join(f"{e} ({n})" for e, n in other.most_common(5))
        what = f"{other.total()} files are no images by their ending: {kinds}"
        findings.warnings.append(Fault(what, shown(folder), fix="they are not read"))
    named = {item.target for item in items}
    empty = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir() and p.name not in named and not p.name.startswith((".", "__"))
    )
    if items and empty:
        what = f"no image in: {', '.join(empty[:8])}"
        why = "a folder without images is no class"
        findings.warnings.append(Fault(what, shown(folder), why))
    return items


# CSV


def _table(
    file: Path, settings: ClassificationSettings, findings: Findings
) -> list[Item]:
    text = _text(file, findings)
    if text is None:
        return []
    wanted = {"image": settings.image, "label": settings.label}
    header_line = text.split("\n", 1)[0].rstrip("\r")
    delimiter = _delimiter(header_line, file, wanted)
    rows = _rows(text, delimiter, file, findings)
    if rows is None:
        return []
    header = [name.strip() for name in rows.pop(0)[1]] if rows else []
    faults = _missing_columns(file, header, wanted)
    if settings.group and "(" not in settings.group and settings.group not in header:
        faults += _missing_columns(file, header, {"group": settings.group})
    if not faults and not rows:
        fix = "give a file with a row for each image"
        faults = [Fault("no samples", shown(file), "there is no row below it", fix)]
    findings.fatal += faults
    if faults:
        return []
    places = {role: header.index(name) for role, name in wanted.items()}
    group = header.index(settings.group) if settings.group in header else None
    items: list[Item] = []
    seen: dict[str, int] = {}
    for line, fields in rows:
        item = Item("", file=shown(file), row=line)

        def blame(what: str, why: str = "", fix: str = "", item: Item = item) -> None:
            findings.sample(*item.place, Fault(what, item.where, why, fix))

        if len(fields) != len(header):
            few = len(fields) < len(header)
            fix = f"put labels that have {delimiter!r} between them in double quotes"
            what = f"too {'few' if few else 'many'} fields: "
            what += f"{len(fields)} of {len(header)}"
            blame(what, fix="complete or remove the row" if few else fix)
            continue
        name = fields[places["image"]].strip()
        if not name:
            blame("image missing", fix="fill in its path, or remove the row")
            continue
        item.path = str(_beside(file, name))
        item.id = below(Path(item.path), file.parent)
        if item.path in seen:
            why = f"line {seen[item.path]} has it already"
            fix = 'several labels of an image go in one row, with data.kind="multi-'
            blame("an image listed twice", why, fix + 'label"; else remove one')
            continue
        seen[item.path] = line
        item.target = _target(fields[places["label"]], settings)
        if item.target is None:
            blame("label missing", fix="fill it in, or remove the row")
        if group is not None:
            item.group = fields[group].strip()
            if not item.group:
                blame(f"no {settings.group}", fix="fill it in, or remove the row")
        items.append(item)
    return items


def _target(value: str, settings: ClassificationSettings) -> str | list[str] | None:
    if settings.kind == "single-label":
        return value.strip() or None
    names = (name.strip() for name in value.split(settings.separator))
    return list(dict.fromkeys(name for name in names if name))


def _beside(file: Path, name: str) -> Path:
    """The path of an image, relative to the file that lists it."""
    path = file.parent / Path(name).expanduser()
    if "\\" in name and not path.exists():
        path = file.parent / name.replace("\\", "/")
    return path


def _text(file: Path, findings: Findings) -> str | None:
    try:
        raw = file.read_bytes()
        if not raw.strip():
            fix = "give a file with a row for each image"
            fault = Fault("no samples", shown(file), "the file is empty", fix)
        elif b"\0" in raw:
            why = "it has NUL bytes, as UTF-16 and binary files have"
            fault = Fault("this is not UTF-8 text", shown(file), why, "save it as CSV")
        else:
            return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        where = f"{shown(file)}, line {line}"
        why = f"byte 0x{raw[error.start]:02x} is no part of a character"
        fault = Fault("this is not UTF-8 text", where, why, "save it as UTF-8")
    except OSError as error:
        fault = Fault("cannot be read", shown(file), error.strerror or str(error))
    findings.fatal.append(fault)
    return None


def _delimiter(header: str, file: Path, wanted: dict[str, str]) -> str:
    """The separator that gives most of the wanted columns."""
    usual = "\t" if file.suffix.lower() == ".tsv" else ","

    def found(delimiter: str) -> tuple[int, int]:
        names = {n.strip() for n in next(csv.reader([header], delimiter=delimiter), [])}
        return len(names & set(wanted.values())), len(names)

    return max([usual, *(d for d in ",;\t|" if d != usual)], key=found)


def _rows(
    text: str, delimiter: str, file: Path, findings: Findings
) -> list[tuple[int, list[str]]] | None:
    """Records with the line on which each begins; blank lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            where, fix = f"{shown(file)}, line {line}", "check its double quotes"
            findings.fatal.append(Fault("not a row", where, str(error), fix))
            return None
        if any(field.strip() for field in fields):
            rows.append((line, fields))


def _missing_columns(
    file: Path, header: Sequence[str], wanted: dict[str, str]
) -> list[Fault]:
    faults = []
    for role, name in wanted.items():
        where = f"{shown(file)}, header"
        if header.count(name) > 1:
            what = f"column {name!r} is there {header.count(name)} times"
            faults.append(Fault(what, where, fix="rename one"))
        if name in header:
            continue
        near = nearest(name, header)
        fix = f"say which column it is with data.{role}"
        if near.startswith("did"):
            fix = f"{near} then set data.{role}"
        what = f"there is no column {name!r} (data.{role})"
        why = f"its columns are {', '.join(map(repr, header[:20]))}"
        faults.append(Fault(what, where, why, fix))
    return faults


# IDX


def _pair(path: Path) -> list[Path]:
    """The files of images and labels that belong to one of them."""
    found = _IDX.fullmatch(path.name)
    if not found:
        return []
    role = found[1]
    beside = sorted(path.parent.iterdir())
    return [p for p in beside if (m := _IDX.fullmatch(p.name)) and m[1] == role]


def _idx(
    files: Sequence[tuple[Path, re.Match[str]]],
    settings: ClassificationSettings,
    findings: Findings,
) -> Parts:
    """Splits of IDX files; value v of the labels has the name ``data.labels[v]``."""
    found: dict[Split, dict[str, Path]] = {}
    for file, match in files:
        found.setdefault(SPLIT_NAMES[match[1]], {}).setdefault(match[2], file)
    if settings.kind == "multi-label":
        fix = 'data.kind="single-label"'
        what = "IDX files have one label an image"
        findings.fatal.append(Fault(what, shown(files[0][0]), fix=fix))
        return {}
    parts: Parts = {}
    for split, pair in found.items():
        lacking = [role for role in ("images", "labels") if role not in pair]
        if lacking:
            there = next(iter(pair.values()))
            what = f"there is no file of {lacking[0]} for {there.name}"
            fix = "put it into the same folder"
            findings.fatal.append(Fault(what, shown(there.parent), fix=fix))
            continue
        try:
            pixels, values = (read_idx(pair[role]) for role in ("images", "labels"))
        except DataError as error:
            findings.fatal += error.faults
            continue
        fault = _idx_fault(pair, pixels, values)
        if fault:
            findings.fatal.append(fault)
            continue
        name = shown(pair["images"])
        names = [_name(int(value), settings.labels) for value in values]
        parts[split] = [
            Item(f"{split}/{i}", "", label, name, i, "image", array=image)
            for i, (image, label) in enumerate(zip(pixels, names, strict=True), start=1)
        ]
    if "train" not in parts and len(parts) == 1:
        return {"train": next(iter(parts.values()))}
    return parts


def _name(value: int, labels: Sequence[str]) -> str:
    return labels[value] if 0 <= value < len(labels) else str(value)


def _idx_fault(
    pair: dict[str, Path], pixels: np.ndarray, values: np.ndarray
) -> Fault | None:
    where = shown(pair["images"])
    shape = "x".join(map(str, pixels.shape))
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or not pixels.size:
        what = f"no grey images: {shape}, {pixels.dtype}"
        return Fault(what, where, "images are uint8 (count, height, width)")
    if values.ndim != 1 or values.dtype.kind not in "iu":
        what = "no labels: one whole number an image is wanted"
        return Fault(what, shown(pair["labels"]))
    if len(pixels) != len(values):
        what = f"{len(pixels)} images and {len(values)} labels"
        return Fault(what, where, f"the labels are in {shown(pair['labels'])}")
    return None


def separator_hint(name: str, labels: Sequence[str]) -> str:
    """The fix for a label that is several labels in one string."""
    for separator in ",;|/ ":
        parts = [part.strip() for part in name.split(separator)]
        if len(parts) > 1 and all(part in labels for part in parts):
            return f'data.kind="multi-label" data.separator={json.dumps(separator)}'
    return ""
