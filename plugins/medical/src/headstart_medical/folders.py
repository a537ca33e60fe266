"""Folders of cases: which file is whose image or label, by its name and folder.

What is left of a path when the words for images, labels, channels and classes are taken
away is the case. So all of these are understood::

    case1/image.nii.gz     case1/label.nii.gz        one folder a case
    case1_T1.nii.gz        case1_seg.nii.gz          all in one folder
    case1/T1/*.dcm         case1/mask.nrrd           DICOM series
    images/case1.nii.gz    labels/case1.nii.gz       one folder a kind
    imagesTr/case1_0000.nii.gz, imagesTr/case1_0001.nii.gz, labelsTr/case1.nii.gz
    case1/ct.nii.gz        case1/segmentations/liver.nii.gz   one file a class
    tumour/case1.nii.gz    healthy/case2.nii.gz      one folder a class
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headstart.errors import Fault, nearest
from headstart_medical.cases import Case, Listing
from headstart_medical.paths import counted, shown, stem, volumes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.data import Findings, Split
    from headstart_medical.data_settings import CaseSettings

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
IMAGE_WORDS = ("image", "img", "scan", "volume", "vol")
LABEL = "label"
"""What ``data.label`` is unless somebody says otherwise."""
LABEL_WORDS = (LABEL, "seg", "segmentation", "mask")
IMAGE_FOLDERS = {*IMAGE_WORDS, "images", "imgs", "scans", "volumes", "dicom"}
LABEL_FOLDERS = {*LABEL_WORDS, "labels", "segmentations", "masks"}
TR_TS = ("tr", "ts")
_NUMBERED = re.compile(r"(.+)_(\d{4})")
_SEPARATORS = "_.- "
Key = tuple[str, ...]


@dataclass
class _File:
    """One file: whose it is, and as what.

    ``role`` is a channel's or class's number, from 0 on; ``None`` where its name does
    not say.
    """

    path: Path
    folders: Key
    name: str
    is_label: bool
    role: int | None
    split: Split | None
    own_folder: bool

    @property
    def key(self) -> Key:
        """Its case: ``case1/case1_T1`` and ``case1/T1`` are both of ``case1``."""
        if not self.name or self.folders[-1:] == (self.name,):
            return self.folders
        return (*self.folders, self.name)


@dataclass
class _Group:
    images: dict[int | None, Path] = field(default_factory=dict)
    labels: dict[int | None, Path] = field(default_factory=dict)
    split: Split | None = None


def read_folder(
    root: Path, settings: CaseSettings, findings: Findings, *, labelled: bool = True
) -> Listing:
    """The cases of a folder; see the head of this module.

    Args:
        root: The folder.
        settings: Names of channels and classes, and words for images and labels.
        findings: Takes the faults.
        labelled: Whether labels are looked for, and cases of ``imagesTs`` that have
            none are left out, as nobody can learn from them.
    """
    names = _Names(settings)
    entries = volumes(root)
    tops = {_parts(entry, root)[0].casefold() for entry in entries if entry != root}
    splits = bool(tops & {"train", "training"})
    if labelled and settings.label != LABEL:
        _check_word(settings.label, entries, root, findings)
    files = [names.parse(entry, root, splits=splits) for entry in entries]
    files = [file for file in files if labelled or not file.is_label]
    count = _number_channels([file for file in files if not file.is_label])
    classes = list(settings.labels[1:])
    groups = _grouped(files, classes, findings)
    channels = settings.channels
    if not channels and count > 1:
        channels = tuple(f"channel{i}" for i in range(count))
    listing = Listing(channels=channels)
    if classes and not settings.labels:
        listing.labels = {name: i for i, name in enumerate(["background", *classes])}
    unused = 0
    for key, group in sorted(groups.items()):
        case = _case(key, group, root, channels, classes, findings)
        if case is None:
            continue
        held_back = group.split == "test" and not splits and not case.labels
        if held_back and labelled and settings.kind != "reconstruction":
            unused += 1
            continue
        if held_back:
            case.split = None
        listing.cases.append(case)
    if unused:
        what = f"not used: {counted(unused, 'case')} of imagesTs without a label"
        findings.warnings.append(Fault(what, shown(root)))
    masks = any(case.labels for case in listing.cases)
    if settings.kind == "single-label" and not masks:
        _class_folders(listing.cases, splits)
    return listing


class _Names:
    """The words by which files and folders are told apart."""

    def __init__(self, settings: CaseSettings) -> None:
        self.words: dict[str, tuple[bool, int | None]] = {
            **dict.fromkeys((*IMAGE_WORDS, settings.image.casefold()), (False, None)),
            **dict.fromkeys((*LABEL_WORDS, settings.label.casefold()), (True, None)),
        }
        self.starts = tuple(self.words)
        # A class of whole cases is no file of a mask.
        if settings.kind != "single-label":
            for index, name in enumerate(settings.labels[1:]):
                self.words[name.casefold()] = (True, index)
        for index, name in enumerate(settings.channels):
            self.words[name.casefold()] = (False, index)
        self.longest = sorted(self.words, key=len, reverse=True)
        self.image_folders = IMAGE_FOLDERS | {settings.image.casefold()}
        self.label_folders = LABEL_FOLDERS | {settings.label.casefold()}

    def parse(self, path: Path, root: Path, *, splits: bool) -> _File:
        """What a file's path says."""
        *folders, name = _parts(path, root)
        if not path.is_dir():
            name = stem(name) or name
        split: Split | None = None
        is_label: bool | None = None
        kept = []
        for depth, folder in enumerate(folders):
            low = folder.casefold()
            if depth == 0 and splits and low in SPLIT_NAMES:
                split = SPLIT_NAMES[low]
                kept.append(folder)
                continue
            if low != _kind(folder):
                split = "test" if low.endswith("ts") else split
                low = _kind(folder)
            if low in self.label_folders or low in self.image_folders:
                is_label = low in self.label_folders
            else:
                kept.append(folder)
        rest, found, role = self.strip(name)
        if is_label and found is False:
            # `labels/case1_image` would be strange: the folder says what it is.
            rest, role = name, None
        # A folder of a kind may be given itself: `predict RUN imagesTs`.
        given = not folders and _kind(root.name) in self.image_folders
        if is_label is None and given and not found:
            is_label = False
        in_folder = is_label is not None
        label = is_label if in_folder else bool(found)
        return _File(path, tuple(kept), rest, bool(label), role, split, in_folder)

    def strip(self, name: str) -> tuple[str, bool | None, int | None]:
        """A name without its word, whether that says label, and its number."""
        low = name.casefold()
        for word in self.longest:
            is_label, role = self.words[word]
            if low == word:
                return "", is_label, role
            # Counted in the name itself: in lower case it may be longer.
            before = len(name) - len(word) - 1
            if low.endswith(word) and before > 0 and name[before] in _SEPARATORS:
                rest = name[:before]
                if role is not None and is_label:
                    # `case1_label_liver`: both words go.
                    rest = self._bare(rest)
                return rest, is_label, role
        for word in self.starts:
            rest = name[len(word) :]
            if (
                low.startswith(word)
                and rest
                and (rest[0] in _SEPARATORS + "0123456789")
            ):
                return rest.lstrip(_SEPARATORS), *self.words[word]
        return name, None, None

    def _bare(self, name: str) -> str:
        rest, is_label, role = self.strip(name)
        return rest if is_label and role is None else name


def _kind(folder: str) -> str:
    """A folder's name in lower case: of ``imagesTr`` and ``imagesTs`` ``images``."""
    low = folder.casefold()
    return low[:-2] if low[:-2] in ("images", "labels") and low[-2:] in TR_TS else low


def _parts(path: Path, root: Path) -> Key:
    return path.relative_to(root).parts or (root.name,)


def _number_channels(images: list[_File]) -> int:
    """nnU-Net's ``_0000``: the channel's number; how many there are."""
    matches = [(f, m) for f in images if (m := _NUMBERED.fullmatch(f.name))]
    numbers = {int(m[2]) for _, m in matches}
    # Other sets number their cases so: those have no two files of one case.
    if len(matches) != len(images) or 0 not in numbers or max(numbers) > 31:
        return 0
    if len({m[1] for _, m in matches}) == 1 < len(matches) and len(numbers) > 8:
        return 0
    if not all(file.own_folder for file, _ in matches):
        return 0
    for file, match in matches:
        file.name, file.role = match[1], int(match[2])
    return max(numbers) + 1


def _grouped(
    files: list[_File], classes: list[str], findings: Findings
) -> dict[Key, _Group]:
    """Files by case; labels find the image that they lie beside.

    ``classes`` is filled with the names of files of one class each, where the recipe
    names none.
    """
    groups: dict[Key, _Group] = {}
    for file in files:
        if file.is_label:
            continue
        group = groups.setdefault(file.key, _Group(split=file.split))
        _put(group.images, file, findings)
    below: dict[Key, list[Key]] = {}
    for key in groups:
        below.setdefault(key[:-1], []).append(key)
    # The only image of a folder is the case, whatever its name.
    alone = {folder: keys[0] for folder, keys in below.items() if len(keys) == 1}
    named = {name.casefold(): i for i, name in enumerate(classes)}
    invent = not classes
    labels = [file for file in files if file.is_label]
    homes = [_home(file, groups, alone) for file in labels]
    if invent:
        classes += sorted(
            {f.name for f, (_, inner) in zip(labels, homes, strict=True) if inner}
        )
        named = {name.casefold(): i for i, name in enumerate(classes)}
    for file, (home, inner) in zip(labels, homes, strict=True):
        if home is None:
            what, why = "a label without a volume", f"its case would be {_id(file.key)}"
            fix = (
                "name both alike, name channels with data.channels, or say what names "
                "of volumes and labels begin or end with: data.image, data.label"
            )
            findings.fatal.append(Fault(what, shown(file.path), why, fix))
            continue
        if inner:
            file.role = named.get(file.name.casefold())
            if file.role is None:
                continue  # a class that the recipe does not name
        _put(groups[home].labels, file, findings)
    return groups


def _home(
    file: _File, groups: dict[Key, _Group], alone: dict[Key, Key]
) -> tuple[Key | None, bool]:
    """The case of a label, and whether the file's name is that of a class."""
    key = file.key
    if key in groups:
        return key, False
    if key and key in alone:
        return alone[key], False
    if file.own_folder and file.folders:
        if file.folders in groups:
            return file.folders, True
        if file.folders in alone:
            return alone[file.folders], True
    return None, False


def _put(into: dict[int | None, Path], file: _File, findings: Findings) -> None:
    if file.role not in into:
        into[file.role] = file.path
        return
    kind = "labels" if file.is_label else "volumes"
    what = f"two {kind} for one case, {_id(file.key)}"
    why = f"the other one is {shown(into[file.role])}"
    fix = "name the channels with data.channels, and classes with data.labels"
    findings.fatal.append(Fault(what, shown(file.path), why, fix))


def _case(
    key: Key,
    group: _Group,
    root: Path,
    channels: tuple[str, ...],
    classes: list[str],
    findings: Findings,
) -> Case | None:
    first = next(iter(group.images.values()))
    where = shown(first if len(group.images) == 1 else first.parent)
    case = Case(_id(key or (root.name,)), (), where=where, split=group.split)
    lone = group.images.get(None)
    if len(channels) > 1 and (lone is None or len(group.images) > 1):
        lacking = [n for i, n in enumerate(channels) if i not in group.images]
        for name in lacking:
            what = f"no volume of channel {name!r}: a missing modality"
            fix = "add it, leave the case out, or train without it: data.channels"
            findings.sample(*case.place, Fault(what, f"{where} ({case.id})", fix=fix))
        present = [i for i in range(len(channels)) if i in group.images]
        case.images = tuple(group.images[i] for i in present)
        if lone is not None:
            what = f"a volume of no known channel: {lone.name}"
            why = f"data.channels: {', '.join(channels)}"
            findings.sample(*case.place, Fault(what, where, why))
    else:
        case.images = tuple(group.images.values())
    if None in group.labels or not group.labels:
        case.labels = tuple(group.labels.values())[:1]
        if len(group.labels) > 1:
            what = "a label of all classes, and labels of single ones"
            why = ", ".join(sorted(path.name for path in group.labels.values()))
            fix = "leave one kind away, or name it otherwise"
            found = Fault(what, f"{where} ({case.id})", why, fix)
            findings.sample(*case.place, found)
        return case
    for index, name in enumerate(classes):
        if index not in group.labels:
            what = f"no label file of class {name!r}"
            fix = "an empty mask says that there is none of it"
            findings.sample(*case.place, Fault(what, f"{where} ({case.id})", fix=fix))
    case.labels = tuple(
        group.labels[i] for i in range(len(classes)) if i in group.labels
    )
    return case


def _check_word(
    word: str, entries: Sequence[Path], root: Path, findings: Findings
) -> None:
    """The user names labels otherwise than usual, and nothing is called so."""
    parts = {part for entry in entries for part in _parts(entry, root)}
    names = {stem(part) or part for part in parts}
    if any(word.casefold() in name.casefold() for name in names):
        return
    what = f"no file or folder is called {word!r} (data.label)"
    why = "labels are taken by the usual words: " + ", ".join(LABEL_WORDS)
    findings.warnings.append(Fault(what, shown(root), why, nearest(word, names)))


def _id(key: Key) -> str:
    return "/".join(key)


def _class_folders(cases: list[Case], splits: bool) -> None:
    """Each case's class is the folder that it is in."""
    for case in cases:
        parts = case.id.split("/")[int(splits and case.split is not None) :]
        if len(parts) > 1:
            case.target = parts[0]
