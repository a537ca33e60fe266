"""The head that gives every voxel a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import Fault, UserError
from headstart.heads import Head
from headstart_medical.components import clean_components
from headstart_medical.grids import Grid, labels_on_original, to_original
from headstart_medical.losses import SegmentationLoss, deep_supervision
from headstart_medical.measures import box_sides
from headstart_medical.options import SegmentationOptions
from headstart_medical.predictions import segmentation_rows
from headstart_medical.sliding import Windows, check_window, enlarged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headstart.model import Model
    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_medical.head_settings import SegmentationSettings

UNKNOWN = 255
"""In masks of outputs: not labelled."""
NOTHING = 1e-3
"""Dice up to which a validation found nothing."""
RAREST = 0.01
"""Least probability that a new head starts a class with."""
_BATCH = ("mask", "truth", "extent", "affine", "original_affine", "original_shape")


class SegmentationHead(Head):
    """A 1x1x1 convolution from the decoder's features to a class per voxel.

    In training it sees patches; otherwise windows slide over whole volumes and their
    logits are blended (:class:`headstart_medical.sliding.Windows`). A coarse feature's
    logits are enlarged (trilinear). The loss is a mean over patches or volumes, those
    with no known voxel left out. A new layer starts at the classes' frequencies (Lin
    et al. 2017), no class below 1 %.

    Args:
        settings: Loss, windows and cleaning.
        feature: What to read, (batch, channels, depth, height, width).
        levels: Coarser features that also learn the mask, fine to coarse.
        task: Of kind ``volume-segmentation``.
    """

    cacheable: ClassVar[bool] = False

    def __init__(
        self,
        settings: SegmentationSettings,
        feature: Feature,
        levels: Sequence[Feature],
        task: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.labels = tuple(task["labels"])
        self.spacing = tuple(task["spacing"])
        self.feature = feature.name
        self.levels = tuple(level.name for level in levels)
        self.reads = (self.feature, *self.levels)
        self.criterion = SegmentationLoss(settings.loss, settings.background)
        self.windows = Windows.of(settings, task["patch"])
        self.largest = settings.components == "largest"
        self.smallest_ml = settings.smallest_ml
        # The core calls factories with features of known width.
        widths = [cast("int", each.channels) for each in (feature, *levels)]
        layers = [nn.Conv3d(width, len(self.labels), 1) for width in widths]
        for layer in layers:
            start_at_frequencies(cast("Tensor", layer.bias), task.get("counts", ()))
        self.conv, self.supervised = layers[0], nn.ModuleList(layers[1:])
        self.upstream = {"conv.": "output."}
        for level in range(len(levels)):
            theirs = f"deep_supervision_heads.{level}.conv.conv."
            self.upstream[f"supervised.{level}."] = theirs

    @property
    def reduction(self) -> str:
        return f"features {', '.join(self.reads)}"

    def reduce(self, state: State) -> State:
        """Leave out all but the features that it reads, masks and grids."""
        return {key: state[key] for key in (*self.reads, *_BATCH) if key in state}

    def forward(self, state: State) -> State:
        """Add ``logits``, (batch, classes, depth, height, width) float32.

        In training also ``levels``: those of the coarser features, a list.
        """
        state = {**state, "logits": self.conv(state[self.feature]).float()}
        if self.training and self.levels:
            state["levels"] = [
                layer(state[name]).float()
                for layer, name in zip(self.supervised, self.levels, strict=True)
            ]
        return state

    def loss(self, state: State) -> Tensor:
        mask = state["mask"]
        if "levels" in state:
            finest = enlarged(state["logits"], mask.shape[1:])
            levels = [finest, *state["levels"]]
            losses = deep_supervision(self.criterion, levels, mask)
        elif "extent" in state:
            losses = torch.stack(
                [
                    self.criterion(logits[None], known[None].to(logits.device))[0]
                    for logits, known in zip(
                        _volumes(state), _masks(state), strict=True
                    )
                ]
            ).to(mask.device)
        else:
            losses = self.criterion(enlarged(state["logits"], mask.shape[1:]), mask)
        return losses.sum() / self.weight(state).clamp(min=1)

    def weight(self, batch: State) -> Tensor:
        """Patches, or volumes, with a known voxel."""
        known = [(mask >= 0).any() for mask in _masks(batch)]
        return torch.stack(known).sum().float()

    def infer(self, model: Model, batch: State) -> State:
        """Windows over each volume of a batch that has ``extent``, one after another.

        ``logits`` is then a list of (classes, depth, height, width), without padding.
        A batch of patches goes through the model once.
        """
        if "extent" not in batch:
            return super().infer(model, batch)

        def network(windows: Tensor) -> Tensor:
            state = model(model.prefix({"image": windows}))
            return enlarged(state["logits"], windows.shape[2:])

        logits = [
            self.windows(network, _cut(image, extent), len(self.labels))
            for image, extent in zip(
                batch["image"], batch["extent"].tolist(), strict=True
            )
        ]
        kept = {key: batch[key] for key in _BATCH if key in batch}
        return {**kept, "logits": logits}

    def outputs(self, state: State) -> dict[str, Any]:
        """Masks as the case's file has them, one row per case.

        Returns:
            ``prediction``: uint8 arrays (x, y, z) on the original grid, cleaned;
            ``spacing``: millimetres (batch, 3) of that grid, see
            :func:`headstart_medical.measures.box_sides`; with a mask to compare to
            ``target``: uint8 arrays, 255 where not known; without one ``confidence``:
            float16 arrays, the probability that a voxel is not background. Patches are
            left on the network's grid.
        """
        outputs: dict[str, Any] = {"prediction": [], "spacing": []}
        labelled = "truth" in state or "mask" in state
        outputs["target" if labelled else "confidence"] = []
        for row, logits in enumerate(_volumes(state)):
            probabilities = logits.softmax(0).cpu().numpy()
            grids = _grids(state, row, probabilities.shape[1:])
            if grids is None:
                mask = probabilities.argmax(0).astype(np.uint8)
                spacing = np.array(self.spacing)
            else:
                mask = labels_on_original(probabilities, *grids)
                spacing = box_sides(grids[1].affine)
            mask = clean_components(
                mask, spacing, largest=self.largest, smallest_ml=self.smallest_ml
            )
            outputs["prediction"].append(mask)
            outputs["spacing"].append(spacing)
            if labelled:
                outputs["target"].append(_target(state, row))
            else:
                found = 1 - probabilities[0]
                found = found if grids is None else to_original(found, *grids)
                outputs["confidence"].append(found.astype(np.float16))
        outputs["spacing"] = torch.as_tensor(np.array(outputs["spacing"]))
        return outputs

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``millilitres`` and ``lesions`` by class, and the ``mask`` itself.

        Told to, also ``probability``; see
        :func:`headstart_medical.predictions.segmentation_rows`.
        """
        asked = self.options
        wanted = isinstance(asked, SegmentationOptions) and asked.probabilities
        return segmentation_rows(
            outputs, self.labels, probabilities=wanted and "confidence" in outputs
        )

    def adapt_classes(
        self, name: str, theirs: Tensor, ours: Tensor, classes: Sequence[str]
    ) -> Tensor | None:
        """Rows of the classes that both know.

        A single row (a sigmoid's) is its class against the background, whose row then
        is 0: softmax of the two is that sigmoid.
        """
        single = len(theirs) == 1 and len(classes) in (1, 2)
        rows = list(classes[-1:] if single else classes)
        if theirs.shape != (len(rows), *ours.shape[1:]):
            return None
        adapted = ours.detach().clone()
        for row, label in enumerate(self.labels):
            if label in rows:
                adapted[row] = theirs[rows.index(label)].to(adapted)
                if single:
                    adapted[0] = 0
        return adapted

    def diagnose(self, metrics: Mapping[str, float]) -> Sequence[Fault]:
        """Tell of a model that finds nothing, or nothing where it is.

        Calling all of a volume background is right for nearly every voxel of it.
        """
        if metrics.get("dice", 1.0) > NOTHING:
            return ()
        return (
            Fault(
                f"nothing is found where it is: Dice {metrics['dice']:.3f}",
                where="predictions",
                why="where a class is rare, calling all background costs little, and "
                "a learning rate that is too high or too low never leaves that",
                fix="unless more training mends it, try a train.learning_rate three "
                "times lower or higher, more train.epochs, or a larger data.foreground",
            ),
        )

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_medical.sections import segmentation_sections

        sections: Sequence[Section] = segmentation_sections(evaluation)
        return sections


def start_at_frequencies(bias: Tensor, counts: Sequence[float]) -> None:
    """Set a bias so that its softmax is about what share of the voxels each class has.

    Without counts it is left as it is.
    """
    shares = torch.as_tensor(list(counts), dtype=torch.float32)
    if shares.sum() > 0:
        with torch.no_grad():
            bias.copy_((shares / shares.sum()).clamp(min=RAREST).log())


def build_segmentation(
    settings: SegmentationSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> SegmentationHead:
    """The head ``medical/segmentation``.

    It reads ``decoded``, else the backbone's last volume.

    Raises:
        UserError: The task has too many classes; the backbone gives no volume, or not
            so many levels as deep supervision wants, or cannot read such windows.
    """
    if len(task["labels"]) > UNKNOWN:
        raise UserError(
            f"there are {len(task['labels'])} classes of voxels",
            where="data.labels",
            why=f"masks are 8-bit and {UNKNOWN} stands for not labelled",
            fix=f"merge classes until there are at most {UNKNOWN}",
        )
    feature = decoded(features)
    check_window(settings, task["patch"], features.values())
    wanted = [f"up{level + 1}" for level in range(settings.deep_supervision)]
    missing = [name for name in wanted if name not in features]
    if missing:
        raise UserError(
            f"deep supervision of {len(wanted)} levels needs {', '.join(missing)}",
            where="head.deep_supervision",
            why=f"the backbone gives {', '.join(features)}",
            fix=f"head.deep_supervision = {wanted.index(missing[0])}, or a backbone "
            "with such levels: medical/dynunet",
        )
    levels = [features[name] for name in wanted]
    return SegmentationHead(settings, feature, levels, task)


def decoded(features: Mapping[str, Feature]) -> Feature:
    """``decoded``, else the last volume that a backbone leaves.

    Raises:
        UserError: It leaves no volume.
    """
    volumes = [feature for feature in features.values() if feature.kind == "volume"]
    if not volumes:
        raise UserError(
            "the backbone leaves no volumes in the state",
            where="head.name",
            why=f"it leaves {', '.join(features) or 'nothing'}",
            fix="choose a backbone for volumes, e.g. medical/dynunet",
        )
    return features.get("decoded", volumes[-1])


def sample_masks(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid masks for tests: 16x16x16, stripes of all classes; the last planes of every
    other one are not known."""
    stripes = torch.arange(16) % len(task["labels"])
    mask = stripes.repeat(batch_size, 16, 16, 1)
    mask[1::2, 12:] = -1
    return {"mask": mask}


def _cut(volume: Tensor, extent: Sequence[int]) -> Tensor:
    """The last three axes without the padding at their ends."""
    i, j, k = extent
    return volume[..., :i, :j, :k]


def _masks(state: State) -> Iterator[Tensor]:
    """Each row's mask (depth, height, width), without padding."""
    extents = state["extent"].tolist() if "extent" in state else None
    for row, mask in enumerate(state["mask"]):
        yield mask if extents is None else _cut(mask, extents[row])


def _volumes(state: State) -> Iterator[Tensor]:
    """Each row's logits (classes, depth, height, width), without padding."""
    if isinstance(state["logits"], list):
        yield from state["logits"]
        return
    logits: Tensor = state["logits"]
    if "mask" in state:
        logits = enlarged(logits, state["mask"].shape[1:])
    extents = state["extent"].tolist() if "extent" in state else None
    for row, volume in enumerate(logits):
        yield volume if extents is None else _cut(volume, extents[row])


def _grids(state: State, row: int, shape: Sequence[int]) -> tuple[Grid, Grid] | None:
    """The network's and the original grid of a case; of a patch nothing is known."""
    if "original_shape" not in state:
        return None
    network = Grid.of(shape, state["affine"][row].cpu().numpy())
    original = Grid.of(
        state["original_shape"][row].tolist(),
        state["original_affine"][row].cpu().numpy(),
    )
    return network, original


def _target(state: State, row: int) -> np.ndarray:
    """The mask that a case came with, uint8 with 255 where not known."""
    if "truth" in state:
        size = state["original_shape"][row].tolist()
        truth: np.ndarray = _cut(state["truth"][row], size).cpu().numpy()
        return truth
    mask = state["mask"][row]
    values: np.ndarray = mask.where(mask >= 0, UNKNOWN).to(torch.uint8).cpu().numpy()
    return values
