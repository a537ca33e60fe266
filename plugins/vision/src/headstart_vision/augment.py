"""Random changes to whole batches on their device, with torchvision's transforms v2.

Boxes and masks move with the pixels. Each image has its own draw: transforms v2 draw
once per call, so they are called once per image, which also keeps uint8 pixels as they
are; on a CPU that took .8 ms for 224 pixels where one batched warp took 1.4 ms.

The presets, with their ranges:

========  ===========================  ==============================================
preset    classification               boxes, instances and semantic masks
========  ===========================  ==============================================
light     flip; crop of .7 to 1 of     flip; scale .9 to 1.1, shift by up to .1 of
          the area, ratio .9 to 1.1;   the side; brightness, contrast, saturation
          brightness, contrast,        +-.1
          saturation +-.2
strong    flip; crop of .35 to 1,      flip; scale .5 to 1.5, shift by up to .2;
          ratio 3/4 to 4/3; colours    colours as on the left; grey (.1); blur (.2)
          +-.4; grey (.1); blur (.2);
          erasing (.25)
trivial-  TrivialAugmentWide (Müller   not offered
augment   and Hutter, ICCV 2021)
========  ===========================  ==============================================

In parentheses: how probable it is; a flip is .5. Objects are not turned: the box of a
turned box is too large.

Every preset but ``trivial-augment`` flips left and right, so labels that have a
direction (a left hand, an arrow, written text) want ``none`` or ``trivial-augment``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from headstart.stages import State
    from headstart_vision.settings import ClassificationSettings

VISIBLE = 0.1
"""An object of which less is left inside the image is no object any more."""
FILL = 114 / 255
"""Grey for what comes into view beside the image: about ImageNet's mean."""
IGNORED = 255


@contextmanager
def _chance(generator: torch.Generator) -> Iterator[None]:
    """Let torch's global generator, which v2 reads, follow ``generator`` for a while.

    Only its seed is read, which stays on the host: it is the caller's to set it anew
    for each batch. No transform here draws on a CUDA device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        yield


def augment_classification(
    batch: State,
    settings: ClassificationSettings,
    generator: torch.Generator,
    classes: int,
) -> State:
    """Change images one by one, then mix them with each other if asked to.

    Args:
        batch: ``pixels`` (batch, 3, height, width) uint8, or float32 in [0, 1];
            ``labels`` (batch,) int64 or (batch, classes) float32.
        settings: ``augmentation``, ``mixup`` and ``cutmix`` are read.
        generator: Its seed is the only source of chance.
        classes: How many there are.

    Returns:
        A new batch; after mixup or cutmix its ``labels`` are shares, (batch, classes)
        float32, and after mixup its ``pixels`` are float32.
    """
    batch = dict(batch)
    with _chance(generator):
        if settings.augmentation != "none":
            pixels = batch["pixels"]
            change = _image_transform(settings.augmentation, pixels.shape[-2:])
            batch["pixels"] = torch.stack([change(image) for image in pixels])
        if settings.mixup or settings.cutmix:
            batch["pixels"], batch["labels"] = _mixed(batch, settings, classes)
    return batch


def _image_transform(preset: str, size: tuple[int, int]) -> v2.Transform:
    if preset == "trivial-augment":
        return v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    if preset == "light":
        crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.9, 1.1))
        return v2.Compose(
            [crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2)]
        )
    crop = v2.RandomResizedCrop(size, scale=(0.35, 1.0))
    return v2.Compose(
        [crop, v2.RandomHorizontalFlip(), _colour("strong"), v2.RandomErasing(p=0.25)]
    )


def _colour(preset: str) -> v2.Transform:
    if preset == "light":
        return v2.ColorJitter(0.1, 0.1, 0.1)
    blur = v2.GaussianBlur(5, sigma=(0.1, 1.5))
    return v2.Compose(
        [
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.RandomGrayscale(0.1),
            v2.RandomApply([blur], 0.2),
        ]
    )


def _mixed(
    batch: State, settings: ClassificationSettings, classes: int
) -> tuple[Tensor, Tensor]:
    labels = batch["labels"]
    # A class count is for class indices alone; several labels are shares already.
    count = classes if labels.ndim == 1 else None
    ways: list[v2.Transform] = []
    if settings.mixup:
        ways.append(v2.MixUp(alpha=settings.mixup, num_classes=count))
    if settings.cutmix:
        ways.append(v2.CutMix(alpha=settings.cutmix, num_classes=count))
    way = ways[int(torch.randint(len(ways), ()))]
    pixels = batch["pixels"]
    if isinstance(way, v2.MixUp):
        pixels = F.to_dtype(pixels, torch.float32, scale=True)
    mixed: tuple[Tensor, Tensor] = way(pixels, labels)
    return mixed


def augment_objects(batch: State, preset: str, generator: torch.Generator) -> State:
    """Move and recolour images, their boxes and, where there are some, their masks.

    A box is cut at the image's border. An object of which less than a tenth is left,
    or less than one pixel in width or height, becomes an empty place (label 0).

    Args:
        batch: The batch of a detector; see the data modules.
        preset: ``none``, ``light`` or ``strong``.
        generator: Its seed is the only source of chance.

    Returns:
        A new batch of the same shapes and ``image_sizes``.
    """
    batch = dict(batch)
    if preset == "none":
        return batch
    changed = ("pixels", "boxes", "masks")
    batch.update({key: batch[key].clone() for key in changed if key in batch})
    kept = []
    with _chance(generator):
        geometry, colour = _geometry(preset), _colour(preset)
        for i, (height, width) in enumerate(_sizes(batch)):
            pixels = batch["pixels"][i, :, :height, :width]
            boxes = batch["boxes"][i]
            move = _Move(geometry, pixels)
            pixels.copy_(colour(move(tv_tensors.Image(pixels))))
            canvas = (height, width)
            # v2 cuts them at the canvas by itself.
            left = move(
                tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
            ).as_subclass(torch.Tensor)
            keep = _kept(boxes, left, move.scale)
            boxes.copy_(left)
            if "masks" in batch:
                masks = batch["masks"][i, :, :height, :width]
                masks.copy_(move(tv_tensors.Mask(masks)))
                keep &= masks.flatten(1).amax(1) > 0
            kept.append(keep)
    keep = torch.stack(kept) & (batch["box_labels"] > 0)
    for key in ("boxes", "box_labels", "crowd", "masks"):
        if key in batch:
            value = batch[key]
            empty = ~keep.view(*keep.shape, *[1] * (value.ndim - 2))
            batch[key] = value.masked_fill(empty, 0)
    return batch


def augment_masks(batch: State, preset: str, generator: torch.Generator) -> State:
    """Move and recolour images and, with them, the class of each pixel.

    Args:
        batch: The batch of a segmenter: ``pixels``, ``mask`` (batch, height, width)
            int64, and ``image_sizes`` where images are padded.
        preset: ``none``, ``light`` or ``strong``.
        generator: Its seed is the only source of chance.

    Returns:
        A new batch; what comes into view beside an image is ignored (255).
    """
    batch = dict(batch)
    if preset == "none":
        return batch
    batch.update({key: batch[key].clone() for key in ("pixels", "mask")})
    with _chance(generator):
        geometry, colour = _geometry(preset), _colour(preset)
        for i, (height, width) in enumerate(_sizes(batch)):
            pixels = batch["pixels"][i, :, :height, :width]
            mask = batch["mask"][i, :height, :width]
            move = _Move(geometry, pixels)
            pixels.copy_(colour(move(tv_tensors.Image(pixels))))
            mask.copy_(move(tv_tensors.Mask(mask), fill=IGNORED))
    return batch


def _sizes(batch: State) -> list[list[int]]:
    """Height and width of each image inside the padded pixels.

    On a GPU this waits for the device, once a batch: crops need them on the host.
    """
    if "image_sizes" in batch:
        sizes: list[list[int]] = batch["image_sizes"].tolist()
        return sizes
    count, _, height, width = batch["pixels"].shape
    return [[height, width]] * count


def _geometry(preset: str) -> v2.RandomAffine:
    """Scale and shift: what leaves the sides of boxes parallel to the image's."""
    if preset == "light":
        return v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.9, 1.1))
    return v2.RandomAffine(0, translate=(0.2, 0.2), scale=(0.5, 1.5))


class _Move:
    """One draw of flip, scale and shift, for all that belongs to an image."""

    def __init__(self, geometry: v2.RandomAffine, pixels: Tensor) -> None:
        self._flip = bool(torch.rand(()) < 0.5)
        self._affine: dict[str, Any] = geometry.make_params([pixels])
        self._fill = FILL if pixels.is_floating_point() else round(FILL * 255)

    @property
    def scale(self) -> float:
        return float(self._affine["scale"])

    def __call__(self, value: tv_tensors.TVTensor, fill: float = 0) -> Any:
        if self._flip:
            value = F.horizontal_flip(value)
        if isinstance(value, tv_tensors.Image):
            bilinear = v2.InterpolationMode.BILINEAR
            return F.affine(
                value, **self._affine, interpolation=bilinear, fill=[self._fill]
            )
        return F.affine(value, **self._affine, fill=[fill])


def _kept(before: Tensor, after: Tensor, scale: float) -> Tensor:
    """Which of the boxes (objects, 4) have enough of themselves left."""
    whole = (before[:, 2:] - before[:, :2]).prod(1) * scale**2
    sides = after[:, 2:] - after[:, :2]
    return (sides >= 1).all(1) & (sides.prod(1) >= VISIBLE * whole)
