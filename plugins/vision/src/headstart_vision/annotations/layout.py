"""Where annotations and images are: the layouts that tools write.

COCO: a JSON file; files by split (``annotations/instances_train2017.json``); a folder
by split with a JSON in each (Roboflow). VOC: ``Annotations``, ``JPEGImages`` and
``ImageSets/Main``; or a folder by split with images and XML side by side. YOLO:
``data.yaml``; ``images/train`` and ``labels/train`` (Ultralytics); ``train/images``
and ``train/labels`` (Roboflow); or ``images`` and ``labels`` alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.errors import Fault
from headstart_vision.annotations import Annotations, coco, voc, yolo
from headstart_vision.paths import image_files, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart.data import Findings
    from headstart_vision.settings import ObjectSettings

ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_TOKEN = re.compile(rf"(?:^|[^a-z])({'|'.join(ALIASES)})(?![a-z])")
_OTHER_JSON = ("captions", "image_info", "person_keypoints", "panoptic", "stuff")
_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "names.txt", "labels.txt")
_HELP = "give a COCO JSON, a YOLO data.yaml, or a folder with JSON, XML or labels/*.txt"


def read(
    path: Path, key: str, settings: ObjectSettings, findings: Findings
) -> dict[str, Annotations]:
    """Find and read what a path holds, by split.

    Without splits of its own, all of it is ``train``.

    Args:
        path: A file or a folder.
        key: The recipe key that named it.
        settings: ``format`` and ``images`` decide where the layout leaves it open.
        findings: Takes the faults.
    """
    layout = _Layout(path, settings, findings)
    readers = {"coco": layout.coco, "voc": layout.voc, "yolo": layout.yolo}
    form = settings.format or layout.guess()
    if not form:
        what = "no annotations are found"
        why = f"{key} names it; it has {_contents(path)}"
        findings.fatal.append(Fault(what, shown(path), why, _HELP))
        return {}
    before = len(findings.fatal)
    found = readers[form]()
    if not found and len(findings.fatal) == before:
        what = f"no annotations of format {form!r} are found"
        why = f"{key} names it; it has {_contents(path)}"
        findings.fatal.append(Fault(what, shown(path), why, _HELP))
    return found


class _Layout:
    """One path, looked at as each format would have it."""

    def __init__(
        self, path: Path, settings: ObjectSettings, findings: Findings
    ) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.given = self.folder / settings.images if settings.images else None
        self.findings = findings

    def guess(self) -> str:
        """The format by what is there; empty if nothing is."""
        if self.path.is_file():
            kinds = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
            return kinds.get(self.path.suffix.lower(), "")
        if self._jsons():
            return "coco"
        if self._xml_folders():
            return "voc"
        if self._described() or self._image_folders():
            return "yolo"
        return ""

    # COCO

    def coco(self) -> dict[str, Annotations]:
        """Read the JSON file of each split."""
        files: dict[str, list[Path]] = {}
        for file in self._jsons():
            files.setdefault(self._split(file), []).append(file)
        if "" in files and len(files) == 1:
            files["train"] = files.pop("")
        torn = [names for split, names in files.items() if len(names) > 1 or not split]
        for names in torn:
            listed = ", ".join(shown(file) for file in names)
            what = f"it cannot be told which file is meant: {listed}"
            fix = (
                "name one as data.path, others as data.validation_path, data.test_path"
            )
            self.findings.fatal.append(Fault(what, shown(self.path), fix=fix))
        if torn:
            return {}
        return {
            split: coco.read(file, shown(file), self._roots(file), self.findings)
            for split, (file,) in files.items()
        }

    def _jsons(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        folders = [self.path, self.path / "annotations", *self._split_folders()]
        files = [
            file
            for folder in folders
            for file in sorted(folder.glob("*.json"))
            if not file.name.startswith(_OTHER_JSON) and coco.is_coco(file)
        ]
        instances = [file for file in files if file.name.startswith("instances_")]
        return instances or files

    def _roots(self, file: Path) -> list[Path]:
        """Where the images of a COCO file may be, the likeliest first."""
        if self.given is not None:
            own = self.given / file.parent.name
            return [self.given, own] if own.is_dir() else [self.given]
        name = file.stem.removeprefix("instances_")
        top = file.parent.parent
        places = [file.parent, file.parent / "images", file.parent / name]
        places += [file.parent / "images" / name]
        places += [top / name, top / "images" / name, top / "images", top]
        return [place for place in places if place.is_dir()]

    def _split(self, file: Path) -> str:
        """The split that a file is of by its folder's or its own name."""
        if file == self.path:
            return ""
        if file.parent != self.path and file.parent.name.casefold() in ALIASES:
            return ALIASES[file.parent.name.casefold()]
        match = _TOKEN.search(file.stem.casefold())
        return ALIASES[match[1]] if match else ""

    def _split_folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [
            entry
            for entry in sorted(self.folder.iterdir())
            if entry.is_dir() and entry.name.casefold() in ALIASES
        ]

    # VOC

    def voc(self) -> dict[str, Annotations]:
        """Read the XML files of each split."""
        found = {}
        for split, folder in self._xml_folders().items():
            files = sorted(folder.glob("*.xml"))
            images = self._by_stem(folder)
            for part, chosen in self._listed(files).items():
                found[part if part != "all" else split] = voc.read(
                    [(file, shown(file)) for file in chosen],
                    images,
                    shown(folder),
                    self.findings,
                )
        return found

    def _xml_folders(self) -> dict[str, Path]:
        """Folders with XML files by split; one alone is ``train``."""
        if not self.path.is_dir():
            return {}
        found: dict[str, Path] = {}
        for folder in self._split_folders():
            for place in (folder, folder / "Annotations", folder / "annotations"):
                if any(place.glob("*.xml")):
                    found.setdefault(ALIASES[folder.name.casefold()], place)
        if found:
            return found
        for name in ("Annotations", "annotations", "labels", "."):
            if any((self.path / name).glob("*.xml")):
                return {"train": self.path / name}
        return {}

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        """Images by name without suffix, from the first folder that has any."""
        top = folder.parent
        places = [top / "JPEGImages", top / "images", top / "Images", folder]
        if self.given is not None:
            places = [self.given]
        for place in places:
            files = image_files(place)
            if files:
                return {file.stem: file for file in reversed(files)}
        return {}

    def _listed(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        """Files by split as ``ImageSets/Main`` lists them."""
        lists = self.path / "ImageSets" / "Main"
        parts: dict[str, list[Path]] = {}
        by_stem = {file.stem: file for file in files}
        names = {"train": "train", "val": "validation", "test": "test"}
        if not (lists / "train.txt").is_file():
            names = {"trainval": "train", "test": "test"}
        for name, split in names.items():
            file = lists / f"{name}.txt"
            if not file.is_file():
                continue
            stems = [line.split()[0] for line in _lines(file)]
            parts[split] = [by_stem[stem] for stem in stems if stem in by_stem]
            for stem in (stem for stem in stems if stem not in by_stem):
                what = f"no annotations for {stem!r}"
                fix = f"add {stem}.xml, or remove the line"
                self.findings.fatal.append(Fault(what, shown(file), fix=fix))
        return parts or {"all": list(files)}

    # YOLO

    def yolo(self) -> dict[str, Annotations]:
        """Read the label files of each split."""
        described = yolo.Described()
        file = self._described()
        if file is not None:
            described = yolo.read_names(file, shown(file), self.findings)
        folders = described.splits
        # A recipe's `images`, and a folder within a described data set, go first.
        if not folders or self.given is not None:
            folders = {s: [f] for s, f in self._image_folders().items()}
        found = {}
        for split, places in folders.items():
            part = self._yolo_split(split, places)
            if part is not None:
                part.names = described.names
                found[split] = part
        return found

    def _yolo_split(self, split: str, places: Iterable[Path]) -> Annotations | None:
        images: list[Path] = []
        for place in places:
            if place.is_dir():
                images += image_files(place)
            elif place.is_file() and place.suffix == ".txt":
                images += [place.parent / line for line in _lines(place)]
            elif split != "test":
                # A test split that was not downloaded is named in many files.
                what = f"there are no images of {split}: {shown(place)}"
                fix = "mend the file, or remove the line for a random split"
                self.findings.fatal.append(Fault(what, shown(self.path), fix=fix))
        if not images:
            return None
        labels: dict[Path, tuple[Path, str]] = {}
        beside: set[Path] = set()
        for image in images:
            swapped = _swapped(image)
            if swapped != image:
                beside.add(swapped.parent)
            for base in (swapped, image):
                file = base.with_suffix(".txt")
                if file.is_file():
                    labels[image] = (file, shown(file))
                    break
        where = shown(images[0].parent)
        if not labels:
            what = "no image has a label file"
            why = f"the first would be {shown(_swapped(images[0]).with_suffix('.txt'))}"
            fix = "put them into a folder `labels` beside `images`, of the same names"
            self.findings.fatal.append(Fault(what, where, why, fix))
        found = yolo.read(images, labels, where, self.findings)
        used = {file for file, _ in labels.values()}
        strays = sorted(f for folder in beside for f in folder.glob("*.txt"))
        strays = [f for f in strays if f not in used and f.name not in _NAME_FILES]
        for file in strays:
            what, fix = "a label file without an image", "add the image, or remove it"
            found.stray(self.findings, Fault(what, shown(file), fix=fix))
        return found

    def _described(self) -> Path | None:
        """The file with the class names."""
        if self.path.is_file():
            return self.path
        usual = [self.path / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
        found = [file for file in usual if file.is_file()]
        found = found or [*self.path.glob("*.yaml"), *self.path.glob("*.yml")]
        if len(found) == 1:
            return found[0]
        folders = (self.path, self.path / "labels")
        places = (folder / name for folder in folders for name in _NAME_FILES)
        return next((file for file in places if file.is_file()), None)

    def _image_folders(self) -> dict[str, Path]:
        """Folders of images by split; one alone is ``train``."""
        top = self.given or self.folder / "images"
        found: dict[str, Path] = {}
        if top.is_dir():
            for entry in sorted(top.iterdir()):
                if entry.is_dir() and entry.name.casefold() in ALIASES:
                    found[ALIASES[entry.name.casefold()]] = entry
            return found or {"train": top}
        for folder in self._split_folders():
            if (folder / "images").is_dir():
                found[ALIASES[folder.name.casefold()]] = folder / "images"
        if found or self.given is not None:
            return found
        images = image_files(self.folder)
        if any(image.with_suffix(".txt").is_file() for image in images):
            return {"train": self.folder}
        return {}


def _swapped(image: Path) -> Path:
    """An image's path with the last folder ``images`` turned into ``labels``."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts)
    return image


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _contents(path: Path) -> str:
    if path.is_file():
        return f"the suffix {path.suffix!r}"
    names = sorted(entry.name for entry in path.iterdir())[:8]
    return ", ".join(map(repr, names)) or "nothing in it"
