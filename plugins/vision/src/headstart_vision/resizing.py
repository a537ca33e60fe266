"""Images to the size that a network sees, one by one and as a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

STRIDE = 32
"""Height and width of padded batches are multiples of it."""
TINY = 32
"""An image of no more pixels a side is resized whole: there is nothing to crop."""


def resize_crop(
    image: Tensor, preprocessing: Mapping[str, Any], size: int | None = None
) -> Tensor:
    """Resize the shorter side and cut out the middle, as torchvision's presets do.

    On uint8 tensors, where torchvision's second version of its transforms rounds like
    Pillow: the result is that of ``weights.transforms()`` on a Pillow image but for a
    level or two in about a hundredth of the values. (On tensors that preset, of the
    first version, is further away and several times slower.) An image of at most 32
    pixels a side is resized whole to the square.

    Args:
        image: uint8 (3, height, width).
        preprocessing: The backbone's ``size``, ``resize``, ``interpolation`` and
            ``antialias``.
        size: Another side than the backbone's; ``resize`` changes in proportion.

    Returns:
        uint8 (3, size, size).
    """
    native = int(preprocessing.get("size", 224))
    resize = int(preprocessing.get("resize", native))
    size, resize = size or native, round(resize * size / native) if size else resize
    mode = InterpolationMode(preprocessing.get("interpolation", "bilinear"))
    antialias = bool(preprocessing.get("antialias", True))
    if max(image.shape[-2:]) <= TINY:
        whole: Tensor = F.resize(image, [size, size], mode, antialias=antialias)
        return whole
    image = F.resize(image, [resize], mode, antialias=antialias)
    middle: Tensor = F.center_crop(image, [size, size])
    return middle


def stack_images(
    images: Sequence[Tensor], stride: int = STRIDE
) -> tuple[Tensor, Tensor]:
    """Images of several sizes as one batch, at the top left, filled up with 0.

    Args:
        images: Each (3, height, width), of one dtype.
        stride: Of what height and width of the batch are multiples.

    Returns:
        ``pixels`` (batch, 3, H, W) and ``image_sizes`` int64 (batch, 2): height and
        width of each image inside them.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = (-(-int(side) // stride) * stride for side in sizes.amax(0))
    pixels = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(pixels, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return pixels, sizes
