"""The data module ``vision/composited``: real garments laid on real photographs.

Its scenes are composited, not photographed, and say so wherever they are shown. What
they are good for is that boxes and masks are exact and nobody had to draw them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from headstart.errors import DataError, Fault, nearest
from headstart_vision import compose, images, resizing, scene_targets, splits
from headstart_vision.augment import IGNORED, augment_masks, augment_objects
from headstart_vision.base import ASSET, SPLITS, find
from headstart_vision.garments import FILES, NAMES, locate, read_garments
from headstart_vision.images import ImageError
from headstart_vision.inputs import PictureModule
from headstart_vision.paths import image_files, missing, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from headstart.data import Sample, Split
    from headstart.stages import State
    from headstart_vision.compose import Scene
    from headstart_vision.settings import SceneSettings

VERSION = 1
"""Of how scenes look: cached features of other versions are not used."""
WHAT = "composited: Fashion-MNIST garments laid on crops of photographs"
SHARES: dict[Split, tuple[int, float]] = {"test": (2, 0.2), "validation": (1, 0.1)}
"""Photographs that a split keeps to itself: the least number, and the share."""
FEWEST = 4
HELD_OUT = 0.1
"""Share of the official training garments that are for validation alone."""
LONGEST = 2
"""A user's photograph is at most so many times as long as it is high."""
KEYS = ("objects", "backgrounds")


class SceneData(PictureModule):
    """Composited scenes with boxes, masks or a class per pixel.

    A scene is a function of (seed, split, number) and of the photographs and garments;
    how many scenes there are changes none of them. Whole photographs belong to one
    split, and so do garments: the official test images to test, the official training
    images to train and validation.
    """

    settings: SceneSettings
    padding: ClassVar[Mapping[str, float]] = {"mask": IGNORED}

    def __init__(self, settings: SceneSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._samples: dict[Split, list[Sample]] = {}
        self._photos: dict[Split, list[str]] = {}
        self._digest = ""

    def load(self) -> None:
        """Read photographs and garments, and plan every scene."""
        self.settings = settings = _completed(self.settings)
        faults = _check_labels(settings.labels)
        folders = {}
        for key in KEYS:
            folders[key] = folder = _folder(getattr(settings, key))
            if not folder.is_dir():
                faults.append(missing(folder, f"data.{key}"))
        if faults:
            raise DataError(*faults)
        digests = self._read_photos(folders["backgrounds"])
        garments = self._read_garments(folders["objects"])
        for split, count in self._counts().items():
            self._samples[split] = [
                self._plan(split, number, garments[split]) for number in range(count)
            ]
        files = [
            locate(folders["objects"], n) for names in FILES.values() for n in names
        ]
        digests += [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f]
        self._digest = hashlib.sha256("".join(digests).encode()).hexdigest()
        self.task = self._task()

    def _counts(self) -> dict[Split, int]:
        settings = self.settings
        return {
            "train": settings.train,
            "validation": settings.validation,
            "test": settings.test,
        }

    def _read_photos(self, folder: Path) -> list[str]:
        """Divide the photographs among the splits; returns their hashes."""
        paths = image_files(folder)
        limit = self.settings.max_pixels
        groups: dict[str, list[str]] = {}
        digests: list[str] = []
        good: list[Path] = []
        for path, look in zip(paths, images.inspect(paths, limit), strict=True):
            if isinstance(look, ImageError):
                fault = Fault(look.what, shown(path), look.why, look.fix)
                self.findings.sample(str(path), 0, fault)
            elif look.digest not in digests:
                digests.append(look.digest)
                good.append(path)
        self.findings.settle(self.settings, len(paths))
        stems = [splits.stem(path.name) for path in good]
        # Names that are numbered throughout say nothing about what belongs together.
        numbered = len(set(stems)) < FEWEST
        for path, stem in zip(good, stems, strict=True):
            groups.setdefault(str(path) if numbered else stem, []).append(str(path))
        if len(groups) < FEWEST:
            raise DataError(
                f"{len(groups)} different photographs are too few",
                where=f"data.backgrounds: {shown(folder)}",
                why="train, validation and test share none, and test needs two",
                fix=f"give at least {FEWEST}, better dozens",
            )
        self._photos = _divided(list(groups.values()), self._generator(0))
        return digests

    def _read_garments(self, folder: Path) -> dict[Split, list[np.ndarray]]:
        """For each split the garments of each class."""
        parts = read_garments(folder)
        # Nearly black ones could not be told from their own background.
        parts = {
            part: (pictures[seen], labels[seen])
            for part, (pictures, labels) in parts.items()
            for seen in [(pictures > compose.THRESHOLD).sum((1, 2)) >= 9]
        }
        found: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
        faults = []
        for name in self._labels:
            number = NAMES.index(name)
            both = {
                p: pictures[labels == number] for p, (pictures, labels) in parts.items()
            }
            if len(both["train"]) < 2 or not len(both["test"]):
                counts = ", ".join(f"{len(pool)} in {p}" for p, pool in both.items())
                where, fix = f"data.objects: {shown(folder)}", "choose data.labels"
                faults.append(Fault(f"too few of {name!r}: {counts}", where, fix=fix))
                continue
            order = self._generator(1, number).permutation(len(both["train"]))
            cut = max(1, round(HELD_OUT * len(order)))
            found["validation"].append(both["train"][order[:cut]])
            found["train"].append(both["train"][order[cut:]])
            found["test"].append(both["test"])
        if faults:
            raise DataError(*faults)
        return found

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.settings.labels or NAMES

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def _plan(
        self, split: Split, number: int, garments: Sequence[np.ndarray]
    ) -> Sample:
        scene = compose.plan(
            self._generator(2 + SPLITS.index(split), number),
            self._photos[split],
            garments,
            size=self.settings.size,
            most=self.settings.most,
        )
        return {"id": f"{split}/{number:06d}", "scene": scene}

    def _task(self) -> dict[str, Any]:
        labels = list(self._labels)
        counts = self._objects("train")
        if self.settings.kind == "semantic":
            labels = ["background", *labels]
            counts = [len(self._samples["train"]), *counts]
        kind = self.settings.kind
        return {"kind": kind, "labels": labels, "counts": counts, "scenes": WHAT}

    def _objects(self, split: Split) -> list[int]:
        """How many objects of each class are in a split's scenes."""
        found = Counter(
            thing.label for s in self._samples[split] for thing in s["scene"].objects
        )
        return [found[number] for number in range(len(self._labels))]

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._samples[split]

    def picture(self, sample: int | Sample, split: Split = "test") -> Tensor:
        """The pixels of a sample, or of a split's sample by its number.

        Returns:
            uint8 (3, height, width), as composed; a user's photograph as it is.
        """
        if isinstance(sample, int):
            sample = self._samples[split][sample]
        return self._read(sample)[0]

    def _read(self, sample: Sample) -> tuple[Tensor, np.ndarray | None]:
        """Pixels, and which object is seen where (see :func:`compose.render`)."""
        limit = self.settings.max_pixels
        try:
            if "scene" in sample:
                pixels, owner = compose.render(sample["scene"], limit)
                return images.from_array(pixels), owner
            if "array" in sample:
                return images.from_array(sample["array"]), None
            return images.decode(sample["path"], limit), None
        except ImageError as error:
            fix = "it was good when the data was checked; run `headstart check`"
            raise DataError(
                error.what, where=sample["id"], why=error.why, fix=fix
            ) from (None)

    def collate(self, samples: Sequence[Sample]) -> State:
        """Compose scenes, or read photographs, and stack them.

        Returns:
            ``pixels``, ``image_sizes`` and ``original_sizes``; for scenes ``boxes``,
            ``box_labels`` and ``crowd``, with ``masks`` for instances, or ``mask``.
        """
        read = [self._read(sample) for sample in samples]
        originals = torch.tensor([list(picture.shape[1:]) for picture, _ in read])
        pixels, sizes = resizing.stack_images(
            [
                picture if owner is not None else self._resized(picture)
                for picture, owner in read
            ]
        )
        state: State = {
            "pixels": pixels,
            "image_sizes": sizes,
            "original_sizes": originals,
        }
        if "scene" in samples[0]:
            scenes = [sample["scene"] for sample in samples]
            owners = [owner for _, owner in read if owner is not None]
            if self.settings.kind == "semantic":
                state["mask"] = scene_targets.semantic_of(
                    scenes, owners, pixels.shape[-2:]
                )
            else:
                state.update(scene_targets.boxes_of(scenes))
            if self.settings.kind == "instances":
                state["masks"] = scene_targets.masks_of(
                    scenes, owners, pixels.shape[-2:]
                )
        return state

    def _resized(self, picture: Tensor) -> Tensor:
        """A photograph at the scenes' size: its shorter side, within reason."""
        from torchvision.transforms.v2 import functional as F

        sides = picture.shape[1:]
        scale = min(
            self.settings.size / min(sides), LONGEST * self.settings.size / max(sides)
        )
        size = [max(round(side * scale), 1) for side in sides]
        resized: Tensor = F.resize(picture, size, antialias=True)
        return resized

    @property
    def augments(self) -> bool:
        return self.settings.augmentation != "none"

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Flip, scale, shift and recolour, targets moved along."""
        change = augment_masks if self.settings.kind == "semantic" else augment_objects
        return change(batch, self.settings.augmentation, generator)

    def show(self, sample: Sample) -> dict[str, Any]:
        """``image``, with its photograph and objects for a scene, and a thumbnail."""
        if "path" in sample:
            return {"image": Path(sample["path"]).name, "path": sample["path"]}
        shown_: dict[str, Any] = {"image": sample["id"]}
        if "scene" in sample:
            scene: Scene = sample["scene"]
            names = [self._labels[thing.label] for thing in scene.objects]
            photo = Path(scene.backdrop.photo).name
            shown_["image"] = f"{sample['id']} (composited on {photo})"
            shown_["objects"] = ", ".join(names) or "none"
        return {**shown_, "thumbnail": images.thumbnail(self.picture(sample))}

    def fingerprint(self) -> str:
        """sha256 over photographs, garments, settings and seed."""
        ignored = {"name", "bad", "bad_cap", "workers", *KEYS}
        settings = self.settings.model_dump(mode="json", exclude=ignored)
        head = [VERSION, self._digest, settings, self.seed, self.task]
        return hashlib.sha256(json.dumps(head).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What scenes are, their number, their objects and their photographs."""
        samples = self._samples
        return {
            "scenes": WHAT,
            **{split: len(samples[split]) for split in SPLITS},
            "objects": {
                split: dict(zip(self._labels, self._objects(split), strict=True))
                for split in SPLITS
            },
            "without objects": {
                split: sum(not s["scene"].objects for s in samples[split])
                for split in SPLITS
            },
            "photographs": {split: len(self._photos[split]) for split in SPLITS},
            "pixels": f"{self.settings.size}x{self.settings.size}",
        }


def _divided(
    groups: Sequence[Sequence[str]], chance: np.random.Generator
) -> dict[Split, list[str]]:
    """Photographs of each split, sorted; groups stay whole."""
    total = sum(map(len, groups))
    waiting = [groups[i] for i in chance.permutation(len(groups))]
    parts: dict[Split, list[str]] = {}
    for split, (least, share) in SHARES.items():
        part: list[str] = []
        taken = 0
        # Least counts groups: photographs of one thing do not make up for another.
        while taken < least or (len(part) < share * total - 0.5 and len(waiting) > 2):
            part += waiting.pop()
            taken += 1
        parts[split] = sorted(part)
    parts["train"] = sorted(photo for group in waiting for photo in group)
    return parts


def _completed(settings: SceneSettings) -> SceneSettings:
    """Relative folders become absolute: a run folder's recipe works everywhere."""
    given = settings.model_dump(include=settings.model_fields_set)
    for key in KEYS:
        value = given.get(key)
        if value and not value.startswith(ASSET):
            given[key] = str(Path(value).expanduser().absolute())
    return type(settings).model_validate(given)


def _folder(path: str) -> Path:
    if not path.startswith(ASSET):
        return Path(path)
    from headstart.assets import fetch

    return fetch(find(path))


def _check_labels(labels: Sequence[str]) -> list[Fault]:
    faults = [
        Fault(f"there is no class {label!r}", "data.labels", fix=nearest(label, NAMES))
        for label in dict.fromkeys(labels)
        if label not in NAMES
    ]
    if twice := sorted(label for label, n in Counter(labels).items() if n > 1):
        what = f"named twice: {', '.join(twice)}"
        faults.append(Fault(what, "data.labels", fix="name each once"))
    return faults
