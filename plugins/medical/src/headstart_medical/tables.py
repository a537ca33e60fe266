"""Listed cases: ``dataset.json`` of the Decathlon, CSV files, an asset's own list."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, nearest
from headstart_medical.cases import Case, Listing
from headstart_medical.folders import LABEL, SPLIT_NAMES, read_folder
from headstart_medical.paths import counted, missing, shown, stem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.assets import Asset
    from headstart.data import Findings
    from headstart_medical.data_settings import CaseSettings

_WORDS = {"ct": "ct", "mr": "mri", "mri": "mri", "t1": "mri", "t2": "mri",
          "flair": "mri", "t1w": "mri", "t2w": "mri", "t1gd": "mri",
          "t1ce": "mri", "adc": "mri", "dwi": "mri", "pet": "pet",
          "suv": "pet"}  # fmt: skip


def from_asset(asset: Asset, folder: Path, settings: CaseSettings) -> Listing:
    """The cases that an asset's ``[NAME.read]`` names."""
    read = asset.read
    listing = Listing(
        channels=tuple(read.get("channels", ())),
        modality=str(read.get("modality", "")),
    )
    labels = read.get("labels", ())
    listing.labels = {name: i for i, name in enumerate(labels)}
    above = settings.above if settings.above is not None else read.get("above")
    for entry in read["cases"]:
        listing.cases.append(
            Case(
                str(entry["id"]),
                tuple(folder / name for name in entry["images"]),
                tuple(folder / name for name in entry.get("masks", ())),
                patient=str(entry.get("patient", "")),
                target=entry.get("target"),
                where=f"asset:{asset.name}, {entry['id']}",
                above=above,
            )
        )
    return listing


# dataset.json


def read_json(path: Path, settings: CaseSettings, findings: Findings) -> Listing:
    """The cases of a ``dataset.json`` (Medical Segmentation Decathlon, MONAI, nnU-Net).

    Cases of its ``test`` list that have no label are used for pretraining alone.
    """
    data = _object(path, findings)
    if not data:
        return Listing()
    channels = _named(data.get("channel_names") or data.get("modality"))
    labels = {name: value for value, name in _numbered(data.get("labels")).items()}
    listing = Listing(channels=channels, labels=labels)
    kinds = {_WORDS.get(name.casefold()) for name in channels} - {None}
    if len(kinds) == 1:
        listing.modality = str(kinds.pop())
    if not isinstance(data.get("training"), list):
        # nnU-Net lists no files: they are where its folders say.
        changed = settings.model_copy(
            update={
                "channels": settings.channels or channels,
                "labels": settings.labels or tuple(labels),
            }
        )
        listing.cases = read_folder(path.parent, changed, findings).cases
        return listing
    unused = 0
    for part in ("training", "validation", "test"):
        for index, entry in enumerate(data.get(part) or ()):
            where = f"{shown(path)}, {part}[{index}]"
            case = _entry(entry, path.parent, where, settings, findings)
            if case is None:
                continue
            labelled = bool(case.labels) or case.target is not None
            if part == "test" and not labelled and settings.kind != "reconstruction":
                unused += 1
                continue
            _check_files(case, findings)
            if part != "training" and labelled:
                case.split = SPLIT_NAMES[part]
            listing.cases.append(case)
    if unused:
        what = f"not used: {counted(unused, 'case')} of its test list without a label"
        fix = f"headstart predict RUN {shown(path)}"
        findings.warnings.append(Fault(what, shown(path), fix=fix))
    return listing


def test_cases(path: Path, settings: CaseSettings, findings: Findings) -> list[Case]:
    """The volumes of the ``test`` list of a ``dataset.json``, to predict for."""
    data = _object(path, findings)
    listed = data.get("test") if data else None
    if data and not isinstance(listed, list):
        what, fix = "no list `test` of volumes", "give the folder of the volumes"
        findings.fatal.append(Fault(what, shown(path), fix=fix))
    found = []
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        where = f"{shown(path)}, test[{index}]"
        if case := _entry(entry, path.parent, where, settings, findings):
            case.labels = ()
            _check_files(case, findings)
            found.append(case)
    return found


def _object(path: Path, findings: Findings) -> dict[str, Any]:
    """A JSON file's object; empty, and a fault, for another file."""
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        findings.fatal.append(Fault("not valid JSON", shown(path), str(error)))
        return {}
    if not isinstance(data, dict) or not data:
        what = "no data set: an object with `training` is expected"
        findings.fatal.append(Fault(what, shown(path)))
        return {}
    return data


def _entry(
    entry: Any, folder: Path, where: str, settings: CaseSettings, findings: Findings
) -> Case | None:
    entry = {"image": entry} if isinstance(entry, str) else entry
    images = _texts(entry.get("image")) if isinstance(entry, dict) else None
    labels = _texts(entry.get("label")) if isinstance(entry, dict) else None
    if not images or labels is None:
        what = "no case: an object with `image` and `label` is expected"
        findings.fatal.append(Fault(what, where))
        return None
    files = [folder / name for name in images]
    name = str(entry.get("id") or stem(files[0].name) or files[0].name)
    case = Case(name, tuple(files), where=where, patient=str(entry.get("patient", "")))
    if settings.kind == "single-label" and labels and stem(labels[0]) is None:
        case.target = labels[0]
    else:
        case.labels = tuple(folder / name for name in labels)
    return case


def _texts(value: Any) -> list[str] | None:
    """A path or several; ``None`` for what is neither."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if all(isinstance(one, (str, int)) and one != "" for one in values):
        return [str(one) for one in values]
    return None


def _numbered(value: Any) -> dict[int, str]:
    """``{"0": "background"}`` or ``{"background": 0}``, by number."""
    if not isinstance(value, dict):
        return {}
    found: dict[int, str] = {}
    for one, other in value.items():
        number, name = (one, other) if str(one).isdigit() else (other, one)
        if str(number).isdigit():
            found[int(number)] = str(name)
    return dict(sorted(found.items()))


def _named(value: Any) -> tuple[str, ...]:
    return tuple(_numbered(value).values())


# CSV


def read_table(path: Path, settings: CaseSettings, findings: Findings) -> Listing:
    """The cases of a CSV file: a row each, paths relative to the file.

    Columns: ``data.image``, or one for each of ``data.channels``; ``data.label`` with
    the label's file or the case's class, or one column for each of ``data.labels`` but
    the background; ``data.patient``, or ``patient``; and, where there are such
    columns, ``id`` and ``split``.
    """
    rows = _rows(path, findings)
    if rows is None:
        return Listing()
    header = [name.strip() for name in rows[0][1]]
    listing = Listing(channels=settings.channels)
    channels = list(settings.channels)
    images = [settings.image]
    if channels and (len(channels) > 1 or channels[0] in header):
        # One column of files that have all channels will do.
        lone = settings.image in header and not set(channels) & set(header)
        images = [settings.image] if lone else channels
    classes = list(settings.labels[1:]) if settings.kind != "single-label" else []
    labels = [settings.label] if settings.label in header else []
    if not labels and set(classes) & set(header):
        labels = classes
    patient = "patient" if "patient" in header else ""
    if settings.patient and "(" not in settings.patient:
        patient = settings.patient
    wanted = {name: "data.channels" for name in images if name in channels}
    wanted = {settings.image: "data.image", **wanted} if not wanted else wanted
    wanted |= {name: "data.labels" for name in labels}
    if not labels and settings.label != LABEL:
        wanted[settings.label] = "data.label"
    wanted |= {patient: "data.patient"} if patient else {}
    faults = _missing_columns(path, header, wanted)
    findings.fatal += faults
    if faults:
        return listing
    for line, fields in rows[1:]:
        where = f"{shown(path)}, line {line}"
        if len(fields) != len(header):
            what = f"{len(fields)} fields where the header has {len(header)}"
            fix = "put fields with a separator into double quotes"
            findings.sample(where, 0, Fault(what, where, fix=fix))
        row = dict.fromkeys(header, "")
        row.update(zip(header, (field.strip() for field in fields), strict=False))
        case = _row(row, path.parent, where, images, labels, settings, findings)
        case.patient = row[patient] if patient else ""
        if patient and not case.patient:
            what, fix = "no patient", f"fill in column {patient!r}"
            findings.sample(*case.place, Fault(what, where, fix=fix))
        listing.cases.append(case)
    return listing


def _row(
    row: dict[str, str],
    folder: Path,
    where: str,
    images: Sequence[str],
    labels: Sequence[str],
    settings: CaseSettings,
    findings: Findings,
) -> Case:
    def beside(name: str) -> Path:
        return folder / Path(name.replace("\\", "/")).expanduser()

    case = Case("", (), where=where)
    for column in images:
        if not row[column]:
            what = f"no volume of channel {column!r}: a missing modality"
            fix = "add it, leave the case out, or train without it: data.channels"
            findings.sample(*case.place, Fault(what, where, fix=fix))
    case.images = tuple(beside(row[column]) for column in images if row[column])
    named = row.get("id") or (row[images[0]] and _bare(row[images[0]]))
    case.id = named or where
    values = [row[column] for column in labels if row[column]]
    if settings.kind == "single-label" and values and stem(values[0]) is None:
        case.target = values[0]
    elif values:
        case.labels = tuple(map(beside, values))
    if split := row.get("split", ""):
        case.split = SPLIT_NAMES.get(split.casefold())
        if case.split is None:
            fix = nearest(split, SPLIT_NAMES)
            findings.sample(*case.place, Fault(f"no split: {split!r}", where, fix=fix))
    _check_files(case, findings)
    return case


def _bare(name: str) -> str:
    """A path without the ending of a volume."""
    path = Path(name.replace("\\", "/"))
    return path.with_name(stem(path.name) or path.name).as_posix()


def _check_files(case: Case, findings: Findings) -> None:
    for file in (*case.images, *case.labels):
        if not file.exists():
            fault = missing(file)
            where = f"{case.where}: {fault.where}"
            found = Fault(fault.what, where, fault.why, fault.fix)
            findings.sample(*case.place, found)


def _rows(path: Path, findings: Findings) -> list[tuple[int, list[str]]] | None:
    """Records with the line on which each begins, the header first."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it has NUL bytes, as UTF-16 and binary files have")
        first = text.split("\n", 1)[0]
        usual = "\t" if path.suffix.casefold() == ".tsv" else ","
        delimiter = max((usual, ",", ";", "\t"), key=first.count)
        stream = io.StringIO(text, newline="")
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        rows = []
        line = 1
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((line, fields))
            line = reader.line_num + 1
    except (OSError, ValueError, csv.Error) as error:
        what = "the table cannot be read"
        fix = "save it as CSV in UTF-8"
        findings.fatal.append(Fault(what, shown(path), str(error), fix))
        return None
    if len(rows) < 2:
        what, fix = "no cases in this table", "give a header and a row for each case"
        findings.fatal.append(Fault(what, shown(path), fix=fix))
        return None
    return rows


def _missing_columns(
    path: Path, header: Sequence[str], wanted: dict[str, str]
) -> list[Fault]:
    faults = []
    where = f"{shown(path)}, header"
    for name, key in wanted.items():
        if header.count(name) > 1:
            what = f"column {name!r} is there {header.count(name)} times"
            faults.append(Fault(what, where, fix="rename one"))
        if name in header:
            continue
        why = f"its columns are {', '.join(map(repr, header[:20]))}"
        what = f"there is no column {name!r} ({key})"
        faults.append(Fault(what, where, why, nearest(name, header)))
    return faults
