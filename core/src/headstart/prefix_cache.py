"""The frozen-prefix cache: what frozen stages give is computed once and kept.

While the prefix is frozen and its input is not augmented at random, its output for a
sample never changes. It is stored row by row (nested values, ragged shapes), and
training reads it instead of running the prefix. What is stored is found again by a
hash over everything that it depends on, so a changed file or weight never meets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.prefix_files import (
    INDEX,
    caches_root,
    damage,
    folder_bytes,
    locked,
    partial_folder,
    size_text,
)
from headstart.prefix_filling import (
    agree,
    filling_batches,
    own_extents,
    padded_dimensions,
)
from headstart.prefix_store import (
    PrefixCache,
    RowWriter,
    Uncacheable,
    as_stored,
    read_cache,
    take_apart,
)
from headstart.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.data import DataModule, Split
    from headstart.distributed import World
    from headstart.execution import Execution
    from headstart.model import Model
    from headstart.settings import CacheSettings
    from headstart.stages import State

__all__ = ["PrefixCache", "PrefixCaches"]

# Bytes a second at which a cache is written, and read from a disk, from the host's
# memory to a GPU, and where it is used; on the safe side of today's machines.
WRITING = MAPPED = 1e9
TRANSFER = 5e9
MEMORY = 1e10


class Interrupted(Exception):
    """A cache that is not made to its end, because somebody asked to stop."""


@dataclass(frozen=True)
class Estimate:
    """Whether a cache pays, found out on one batch.

    Attributes:
        pays: Whether to use it.
        reason: In words, with its size and gain.
    """

    pays: bool
    reason: str


class PrefixCaches:
    """Makes and finds the caches of one run.

    Args:
        model: Its freeze point says what is cached.
        data: Collates; its fingerprint is part of the key.
        settings: ``[cache]``.
        execution: Device and precision.
        batch_size: Samples per pass of the prefix.
        batch_total: Most that a pass takes, in the data's unit.
        seed: Of the augmented views.
        tell: Called with each decision in words.
        sharded: Whether the parameters are spread over the ranks.
        world: The main rank decides and fills; the others read.
        asked: Whether somebody wishes to stop; read between two batches.
    """

    def __init__(
        self,
        model: Model,
        data: DataModule,
        settings: CacheSettings,
        execution: Execution,
        *,
        batch_size: int,
        seed: int,
        tell: Callable[[str], None],
        world: World,
        sharded: bool = False,
        batch_total: float | None = None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self.data = data
        self.settings = settings
        self.execution = execution
        self.batch_size = batch_size
        self._total = data.in_steps(batch_total)
        self.seed = seed
        self.tell = tell
        self.world = world
        self.sharded = sharded
        self.asked = asked
        self._fingerprint: str | None = None

    def choose(self, split: Split, passes: float) -> PrefixCache | None:
        """A cache of a split at the present freeze point, if it pays, on every rank.

        Args:
            split: ``train`` may be augmented, the others never are.
            passes: How often training will run over the split while the freeze point
                stays.
        """
        with contextlib.ExitStack() as held:
            folder = self._choose(split, passes, held) if self.world.main else None
            folder = self.world.share(folder)
            if folder is None:
                return None
            unseen = not (folder / INDEX).is_file()
            if self.world.any(unseen, self.execution.device):
                self._say(split, f"off, not every rank sees {caches_root()}")
                return None
            cache = self._open(folder, self.settings.memory_gb * 2**30)
            # Nobody may delete it before the last rank has opened it.
            self.world.wait()
            return cache

    def _choose(
        self, split: Split, passes: float, held: contextlib.ExitStack
    ) -> Path | None:
        augmented = split == "train" and self.data.augments
        reason = self._refusal(augmented)
        if split != "train" and not self.model.head.cacheable:
            reason = reason or "evaluation does more than run the model once"
        if reason:
            if self.settings.mode != "off" and self.model.freeze_point:
                self._say(split, f"off, {reason}")
            return None
        views = self.settings.views if augmented else 1
        folder = caches_root() / self._key(split, views, augmented)
        try:
            waiting = "waiting for another run, which is making or opening it"
            if self.asked():
                return None
            held.enter_context(locked(folder, lambda: self._say(split, waiting)))
            if folder.exists() and self._holds(folder, split):
                self._say(split, f"found, {size_text(folder_bytes(folder))}")
                return folder
            estimate = self._estimate(split, passes, views)
            self._say(split, f"{'on' if estimate.pays else 'off'}, {estimate.reason}")
            if not estimate.pays:
                return None
            self._make(folder, split, views)
            return folder
        except Interrupted:
            self._say(split, "stopped before it was whole, nothing of it is kept")
        except Uncacheable as error:
            self._say(split, f"off, {error}")
        except OSError as error:
            self._say(split, f"off, it cannot be written: {error}")
        return None

    def _say(self, split: Split, text: str) -> None:
        self.tell(f"prefix cache ({split}): {text}")

    def _refusal(self, augmented: bool) -> str:
        if self.settings.mode == "off":
            return "cache.mode is off"
        if self.sharded:
            return "the parameters are spread over the ranks"
        if self.model.freeze_point == 0:
            return "no stage before the first training one is frozen"
        if any(f.kind == "table" for f in self.model.backbone.features.values()):
            return "a table is looked up, which costs no more than a cache"
        if augmented and not self.settings.views:
            return (
                "augmentation before the freeze point changes every epoch; "
                "cache.views = V stores V different views of each sample"
            )
        return ""

    def _key(self, split: Split, views: int, augmented: bool) -> str:
        """Hash over everything that the stored values depend on."""
        if self._fingerprint is None:
            self._fingerprint = self.data.fingerprint()
        model, head = self.model, self.model.head
        names = model.backbone.stage_names[: model.freeze_point]
        reduction = [type(head).__module__, type(head).__qualname__, head.reduction]
        about = {
            "headstart": __version__,
            "torch": torch.__version__,
            "data": self._fingerprint,
            "split": split,
            "stages": names,
            "modules": [repr(model.backbone.stages[name]) for name in names],
            "config": model.backbone.config,
            "consumed": model.backbone.consumed,
            "head": reduction if len(names) == len(model.backbone.stages) else [],
            "device": self.execution.device.type,
            "bf16": self.execution.bf16,
            "precision": self.settings.precision,
            # The chance of a view is that of a batch, not of a sample.
            "views": [views, self.seed, self.batch_size, self._total]
            if augmented
            else [],
        }
        text = json.dumps(about, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode())
        for name in names:
            stage = model.backbone.stages[name]
            for key, value in (*stage.named_parameters(), *stage.named_buffers()):
                about_it = (name, key, str(value.dtype), tuple(value.shape))
                digest.update(repr(about_it).encode())
                plain = value.detach().cpu().contiguous().view(-1)
                digest.update(plain.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def _prefix(self, indices: np.ndarray, split: Split, view: int) -> State:
        """What the prefix gives; frozen, it is in evaluation mode at all times."""
        samples = self.data.samples(split)
        batch = self.data.batch(samples, indices)
        batch = self.execution.move(batch)
        if split == "train" and self.data.augments:
            chance = np.random.SeedSequence([self.seed, view, int(indices[0])])
            generator = torch.Generator(self.execution.device)
            generator.manual_seed(int(chance.generate_state(1, np.uint64)[0] >> 1))
            batch = self.data.augment(batch, generator)
        with self.execution.autocast():
            return self.model.prefix(batch)

    def _batches(self, split: Split, mixed: bool = False) -> list[np.ndarray]:
        count, sizes = len(self.data.samples(split)), self.data.sizes(split)
        return filling_batches(count, sizes, self.batch_size, mixed, self._total)

    def _estimate(self, split: Split, passes: float, views: int) -> Estimate:
        """Size and gain from the largest batch of one size.

        Raises:
            Uncacheable: What the prefix gives has no rows.
        """
        probe = max(self._batches(split), key=len)
        sizes = self.data.sizes(split)
        count = float(len(self.data.samples(split)))
        if sizes is not None:
            count *= float(sizes.mean() / sizes[probe].mean())
        # Alone, no other dimension is taken for that of the samples.
        take_apart(self._prefix(probe[:1], split, 0), 1)
        _, tensors, _ = take_apart(self._prefix(probe, split, 0), len(probe))
        self._wait()
        began = time.perf_counter()
        self._prefix(probe, split, 0)
        self._wait()
        once = (time.perf_counter() - began) / len(probe) * count
        stored = [as_stored(t, self.settings.precision) for t in tensors.values()]
        row = sum(t.numel() * t.element_size() for t in stored) / len(probe)
        total = int(row * count) * views
        free = shutil.disk_usage(caches_root()).free // 2
        if total > min(self.settings.disk_gb * 2**30, free):
            small = self.settings.disk_gb * 2**30 <= free
            limit = "cache.disk_gb" if small else "half of the free disk space"
            return Estimate(
                False, f"it needs {size_text(total)}, more than {limit} allows"
            )
        if self.settings.mode == "on":
            return Estimate(True, f"{size_text(total)}, asked for")
        if passes <= views:
            few = "less than once" if passes < 1 else _times(passes)
            return Estimate(
                False,
                f"from this freeze point, training runs over {split} {few}, filling it "
                f"does so {_times(views)}",
            )
        reading = total / views / self._reading_rate(total)
        saved = once * (passes - views) - reading * passes - total / WRITING
        gain = f"{size_text(total)}, saves about {max(saved, 0):.1f} of "
        gain += f"{once * passes:.1f} s"
        return Estimate(saved > max(0.2, 0.1 * once * passes), gain)

    def _reading_rate(self, total: int) -> float:
        if total > self.settings.memory_gb * 2**30:
            return MAPPED
        return TRANSFER if self.execution.device.type == "cuda" else MEMORY

    def _wait(self) -> None:
        if self.execution.device.type == "cuda":
            torch.cuda.synchronize()

    def _make(self, folder: Path, split: Split, views: int) -> None:
        """Run the prefix over a split into a folder that is there whole or not at all.

        Raises:
            Uncacheable: Its batches differ in more than their values.
            Interrupted: Somebody asked to stop.
            OSError: The folder cannot be written.
        """
        partial = partial_folder(folder)
        # What a killed process left; the lock is ours.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            sizes = self.data.sizes(split)
            padded = padded_dimensions(lambda i: self._prefix(i, split, 0), sizes)
            row_of = np.zeros((views, len(self.data.samples(split))), dtype=np.int64)
            with RowWriter(partial, self.settings.precision) as writer:
                for view in range(views):
                    for indices in self._batches(split, padded is not None):
                        if self.asked():
                            raise Interrupted
                        state = self._prefix(indices, split, view)
                        own = own_extents(state, indices, sizes, padded)
                        rows = writer.write(state, len(indices), own)
                        row_of[view, indices] = rows
                writer.finish(row_of, self._about(split, views))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _about(self, split: Split, views: int) -> dict[str, Any]:
        names = self.model.backbone.stage_names[: self.model.freeze_point]
        return {
            "split": split,
            "freeze_point": names[-1],
            "samples": len(self.data.samples(split)),
            "views": views,
            "made": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }

    def _holds(self, folder: Path, split: Split) -> bool:
        """Whether a stored cache is whole and agrees with the model; else deletes it.

        The key cannot tell whether the code of a stage or of a library has changed, so
        one batch is computed and compared.
        """
        fault = damage(folder)
        if not fault:
            batch = self._batches(split)[0]
            fresh = self._prefix(batch, split, 0)
            stored = self._open(folder, 0).batch(batch, 0)
            if not agree(fresh, stored, len(batch)):
                fault = "the model now gives other values"
        if fault:
            self._say(split, f"the stored one is useless, {fault}; making it anew")
            shutil.rmtree(folder)
        return not fault

    def _open(self, folder: Path, memory_bytes: float) -> PrefixCache:
        return read_cache(
            folder,
            memory_bytes=memory_bytes,
            device=self.execution.device,
            padding=self.data.padding,
        )


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.3g} times"
