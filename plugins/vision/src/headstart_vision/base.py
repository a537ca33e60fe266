"""What all data modules for images share: files, splits, leaks, fingerprint, inputs.

A subclass says how samples are listed (:meth:`ImageModule.read`), what is wrong with
their targets (:meth:`ImageModule.check`), what the task is and how a batch is made.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from headstart.errors import DataError, Fault
from headstart_vision import images, leaks, splits
from headstart_vision.images import ImageError
from headstart_vision.inputs import PictureModule
from headstart_vision.paths import missing, shown
from headstart_vision.settings_checks import check_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from headstart.assets import Asset
    from headstart.data import Sample, Split
    from headstart_vision.items import Item, Parts
    from headstart_vision.settings import ImageSettings

SettingsT = TypeVar("SettingsT", bound="ImageSettings")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ASSET = "asset:"
PATHS = ("path", "validation_path", "test_path")


class ImageModule(PictureModule):
    """Images on disk with targets; the base of this plugin's data modules.

    The test split is taken first and depends on the data, the seed and
    ``data.test_size`` alone; ``data.rows`` then limits what is left for training and
    validation together, so that "300 rows" means 300 labelled images in all (a
    validation split that has files of its own is not counted). Groups, files with
    nearly the same name and files with the same content are never torn apart.
    """

    settings: ImageSettings

    def __init__(self, settings: ImageSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.items: dict[Split, list[Item]] = {}
        """The good samples of each split, filled by :meth:`load`."""
        self._samples: dict[Split, list[Sample]] = {}
        self._notes: dict[str, str] = {}

    # What a subclass says

    @abstractmethod
    def read(self, path: Path, key: str) -> Parts:
        """List the samples of a file or folder; image files are not opened here.

        Args:
            path: It exists.
            key: The setting that named it, e.g. ``data.path``, for faults.

        Returns:
            Items by split; ``{"train": …}`` for what has no splits of its own. Faults
            go to ``findings``; a sample with a fault is listed all the same, unless
            there is no telling where its image is.
        """

    @abstractmethod
    def check(self, parts: Parts) -> None:
        """Put what is wrong with the targets into ``findings``.

        Called once with all items; ``size`` is known, but for those that cannot be
        opened (a fault already): their ``digest`` is empty and their ``size`` (0, 0).
        ``train`` holds all that will be split at random; without it, ``data.labels``
        are those of a trained model.
        """

    @abstractmethod
    def make_task(self, train: Sequence[Item]) -> dict[str, Any]:
        """``kind``, ``labels`` and ``counts``, from the final training split."""

    def target_of(self, item: Item) -> dict[str, Any]:
        """What a sample has beside ``id`` and ``path``."""
        return {}

    def strata(self, items: Sequence[Item]) -> list[str]:
        """What a random split keeps in proportion; by default nothing."""
        return [""] * len(items)

    def signature(self, item: Item) -> Any:
        """JSON-ready, of all that a collated sample depends on; for fingerprints."""
        return [item.digest, item.target]

    # The contract of DataModule

    def load(self) -> None:
        """Read, check and split."""
        self.settings = settings = completed(self.settings)
        good = self._checked(self._read(PATHS))
        pool = good["train"]
        bundles = splits.unite(pool, self.strata(pool), settings, self.findings)
        for item, bundle in zip(pool, bundles.tolist(), strict=True):
            item.bundle = bundle
        self._keep(self._split(good))
        self.task = self.make_task(self.items["train"])

    def load_split(self, split: Split) -> bool:
        """Where ``data.validation_path`` or ``data.test_path`` names the split."""
        self.settings = completed(self.settings)
        if split == "train" or not getattr(self.settings, f"{split}_path"):
            return False
        parts = self._read((f"{split}_path",))
        known = {"labels": tuple(self.task["labels"])}
        self.settings = self.settings.model_copy(update=known)
        self._keep(self._checked(parts))
        return True

    def _checked(self, parts: Parts) -> Parts:
        """The good items; each split has some."""
        settings, findings = self.settings, self.findings
        self._open(parts)
        self.check(parts)
        self._find_groups(parts)
        leaks.check_content(parts, findings)
        if settings.group:
            leaks.check_groups(parts, findings)
        bad = findings.settle(settings, sum(map(len, parts.values())))
        good: Parts = {
            split: [item for item in items if item.place not in bad]
            for split, items in parts.items()
        }
        if empty := [split for split, items in good.items() if not items]:
            what = f"no sample is left for {' and '.join(empty)}"
            raise DataError(what, where=settings.path, fix="give more images")
        return good

    def _keep(self, items: dict[Split, list[Item]]) -> None:
        self.items = items
        self._samples = {
            split: [self._sample(item) for item in each]
            for split, each in items.items()
        }

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._samples[split]

    def picture(self, sample: int | Sample, split: Split = "test") -> Tensor:
        """The pixels of a sample, or of a split's sample by its number.

        Returns:
            uint8 (3, height, width), as the file has them, EXIF orientation applied.

        Raises:
            DataError: The file changed since it was checked and cannot be read.
        """
        if isinstance(sample, int):
            sample = self._samples[split][sample]
        try:
            if "array" in sample:
                return images.from_array(sample["array"])
            return images.decode(sample["path"], self.settings.max_pixels)
        except ImageError as error:
            name = shown(str(sample.get("path", sample["id"])))
            fix = "it was good when the data was checked; run `headstart check`"
            raise DataError(error.what, where=name, why=error.why, fix=fix) from None

    def show(self, sample: Sample) -> dict[str, Any]:
        """``image``: its name; ``path``, or a ``thumbnail`` where there is no file."""
        if "path" in sample:
            return {"image": Path(sample["path"]).name, "path": sample["path"]}
        picture = images.from_array(sample["array"])
        return {"image": sample["id"], "thumbnail": images.thumbnail(picture)}

    def fingerprint(self) -> str:
        """sha256 over the files' content, targets, splits and settings."""
        ignored = {"name", "bad", "bad_cap", "workers", *PATHS}
        settings = self.settings.model_dump(mode="json", exclude=ignored)
        head = [settings, self.task, dict(self.preprocessing)]
        digest = hashlib.sha256(json.dumps(head, default=str).encode())
        for split, items in self.items.items():
            for item in items:
                digest.update(json.dumps([split, self.signature(item)]).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Images by split, their sizes, and how random splits were made."""
        described: dict[str, Any] = {split: len(self.items[split]) for split in SPLITS}
        sizes = np.array([i.size for items in self.items.values() for i in items])
        described["pixels"] = {
            "smallest": _by(sizes[sizes.prod(1).argmin()]),
            "median": _by(np.median(sizes, axis=0)),
            "largest": _by(sizes[sizes.prod(1).argmax()]),
        }
        return {**described, **self._notes}

    def blame(self, item: Item, what: str, why: str = "", fix: str = "") -> None:
        """Note a fault of one sample; ``data.bad`` decides about it."""
        self.findings.sample(*item.place, Fault(what, item.where, why, fix))

    # How it is done

    def _sample(self, item: Item) -> Sample:
        source = {"path": item.path} if item.array is None else {"array": item.array}
        return {"id": item.id, **source, **self.target_of(item)}

    def _read(self, names: Sequence[str]) -> Parts:
        settings, findings = self.settings, self.findings
        if wrong := check_settings(settings):
            findings.fatal += wrong
            findings.settle(settings, total=0)
        parts: Parts = {}
        split: Split = "train"
        for name in names:
            value = getattr(settings, name)
            if not value:
                continue
            path = self.locate(value)
            if not path.exists():
                findings.fatal.append(missing(path, f"data.{name}"))
                continue
            found = self.read(path, f"data.{name}")
            if name == "path":
                parts = found
                continue
            split = "test" if name == "test_path" else "validation"
            items = found.get(split, found.get("train", []))
            for item in items:
                item.id = f"{split}/{item.id}"
            parts[split] = items
        if not parts.get("train" if "path" in names else split):
            if not findings.fatal and not findings.samples:
                fix = "give a folder or a file with images"
                fault = Fault("no images found", getattr(settings, names[0]), fix=fix)
                findings.fatal.append(fault)
            findings.settle(settings, total=0)
        return parts

    def locate(self, path: str) -> Path:
        """The file or folder of a setting; an asset is fetched."""
        if not path.startswith(ASSET):
            return Path(path).expanduser()
        from headstart.assets import fetch

        asset = find(path)
        return fetch(asset) / str(asset.read.get("file", ""))

    def _open(self, parts: Parts) -> None:
        """Decode every file once; those that cannot be are faults."""
        limit = self.settings.max_pixels
        items = [item for part in parts.values() for item in part]
        for item in items:
            if item.array is not None:
                item.digest = hashlib.sha256(item.array.tobytes()).hexdigest()
                item.size = item.array.shape[:2]
        files = [item for item in items if item.array is None]
        looks = images.inspect([item.path for item in files], limit)
        for item, look in zip(files, looks, strict=True):
            if isinstance(look, ImageError):
                self.blame(item, look.what, look.why, look.fix)
            else:
                item.size, item.digest = look.size, look.digest

    def _find_groups(self, parts: Parts) -> None:
        """Fill in ``group`` where ``data.group`` is a pattern and not a column."""
        pattern = self.settings.group
        items = [item for part in parts.values() for item in part]
        if not pattern or any(item.group for item in items):
            return
        search = re.compile(pattern).search
        strangers = []
        for item in items:
            found = search(item.id)
            item.group = (found.group(1) or "") if found else ""
            if not item.group:
                strangers.append(item)
        if strangers:
            what = f"{len(strangers)} of {len(items)} images are in no group"
            why = f"{pattern!r} finds none in {strangers[0].id!r}"
            fix = "write a pattern that fits every path below the data's folder"
            self.findings.fatal.append(Fault(what, "data.group", why, fix))

    def _split(self, parts: Parts) -> dict[Split, list[Item]]:
        """Take the splits that came without files from train, test first."""
        parts, settings = dict(parts), self.settings
        if "test" not in parts:
            parts["test"], parts["train"] = self._take(parts["train"], "test")
        pool = parts["train"]
        if settings.rows is not None and settings.rows < len(pool):
            parts["train"] = self._sub_sample(pool, settings.rows)
        if "validation" not in parts:
            taken, left = self._take(parts["train"], "validation")
            parts["validation"], parts["train"] = taken, left
        return {split: parts[split] for split in SPLITS}

    def _take(
        self, items: list[Item], split: Literal["validation", "test"]
    ) -> tuple[list[Item], list[Item]]:
        """Items for a split, in whole groups, and those that stay."""
        total, key = len(items), f"data.{split}_size"
        size = getattr(self.settings, f"{split}_size")
        count = round(size * total) if size < 1 else int(size)
        if not 0 < count < total:
            full = f"{size:g} of {total} images leaves nothing to train on"
            none = f"{size:g} of {total} images leaves the {split} split empty"
            fix = f"give a share such as 0.1, or files: data.{split}_path"
            raise DataError(Fault(full if count else none, key, fix=fix))
        strata = self.strata(items)
        groups = np.array([item.bundle for item in items])
        taken = splits.take_out(strata, groups, count, self._generator(split))
        if not taken.any():
            largest = int(np.bincount(groups).max())
            what = f"no image can be taken for {split} from {total}"
            why = f"groups stay together, and the largest has {largest} images"
            if largest < total / 2:
                why = "each class keeps 2 images in train"
            fix = f"give more images, or files for it: data.{split}_path"
            raise DataError(Fault(what, key, why, fix))
        how = f"seed {self.seed}, {total} images in {len(np.unique(groups))} groups"
        self._notes[f"{split} split"] = (
            f"stratified, {how}" if len(set(strata)) > 1 else how
        )
        chosen = [item for item, t in zip(items, taken, strict=True) if t]
        return chosen, [item for item, t in zip(items, taken, strict=True) if not t]

    def _sub_sample(self, items: list[Item], count: int) -> list[Item]:
        """So many items, in proportion to the strata, in their order.

        Not in whole groups: what is left out is used nowhere, so nothing can leak.
        """
        each = np.arange(len(items))
        strata = self.strata(items)
        kept = splits.take_out(strata, each, count, self._generator("rows"), keep=0)
        return [item for item, k in zip(items, kept, strict=True) if k]

    def _generator(self, what: str) -> np.random.Generator:
        # A stream of chance for each split: none depends on another's size.
        stream = ("test", "rows", "validation").index(what)
        return np.random.default_rng([self.seed, stream])


def completed(settings: SettingsT) -> SettingsT:
    """The settings with what an asset's ``[NAME.read]`` says about its data.

    What the recipe says itself goes before. Relative paths become absolute, so that a
    run folder's recipe works from everywhere.
    """
    given = settings.model_dump(include=settings.model_fields_set)
    reading: dict[str, Any] = {}
    if settings.path.startswith(ASSET):
        read = find(settings.path).read
        reading = {k: v for k, v in read.items() if k != "file"}
    for name in PATHS:
        value = given.get(name)
        if value and not value.startswith(ASSET):
            given[name] = str(Path(value).expanduser().absolute())
    return type(settings).model_validate({**reading, **given})


def find(path: str) -> Asset:
    """The asset that a path names; any plugin of this package's manifest."""
    from headstart.assets import find_asset

    return find_asset(path.removeprefix(ASSET), ("headstart_vision",))


def _by(size: Iterable[float]) -> str:
    height, width = (int(value) for value in size)
    return f"{width}x{height}"
