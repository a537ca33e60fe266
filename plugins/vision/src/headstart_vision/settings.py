"""Settings of the vision plugin's backbones, heads and data; torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from headstart.errors import nearest
from headstart.settings import (
    BackboneSettings,
    ClassificationSettings,
    DataSettings,
    HeadSettings,
    Share,
)
from headstart_vision import catalogue

Size = Annotated[float, Field(ge=0.0)]
Positive = Annotated[int, Field(ge=1)]


class CnnSettings(BackboneSettings):
    """``[backbone]`` of a convolutional network from torchvision."""

    architecture: str = ""
    """torchvision's name of the network, e.g. ``resnet50``; empty takes what the
    weights are for, else the backbone's own."""
    norm: Literal["batch", "frozen"] = "batch"
    """``frozen`` never updates BatchNorm's statistics nor its scale and shift, as
    detectors want that train on two images at a time."""
    width: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the channels, where a network has one (MobileNet, ConvNeXt,
    EfficientNet b0); weights exist for 1.0 alone."""
    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the last maps: below 32 the last stages are dilated instead, as
    segmentation weights are (ResNet from 50 on 8 or 16, MobileNetV3 16). ``None``
    takes what the weights were trained with, else 32."""

    @field_validator("architecture")
    @classmethod
    def _known(cls, architecture: str, info: ValidationInfo) -> str:
        known = catalogue.architectures(info.data.get("name", ""))
        if architecture and known and architecture not in known:
            backbone = catalogue.backbone_of(architecture)
            hint = f"choose the backbone {backbone!r}" if backbone else ""
            raise ValueError(
                f"{info.data['name']!r} has no network {architecture!r}; "
                + (hint or nearest(architecture, known))
            )
        return architecture

    @model_validator(mode="before")
    @classmethod
    def _default_weights(cls, values: Any) -> Any:
        """The default weights are those of the network that is asked for."""
        if isinstance(values, dict) and not values.get("weights"):
            network = catalogue.NETWORKS.get(str(values.get("architecture", "")))
            if network is not None:
                return {**values, "weights": network.weights}
        return values


class TimmSettings(BackboneSettings):
    """``[backbone]`` of a network from timm (needs ``headstart-vision[timm]``)."""

    architecture: str = ""
    """timm's name of the network, e.g. ``convnext_tiny``; empty takes what the weights
    are for."""

    @model_validator(mode="before")
    @classmethod
    def _default_weights(cls, values: Any) -> Any:
        """The default weights are those of the network that is asked for."""
        if isinstance(values, dict) and not values.get("weights"):
            architecture = values.get("architecture")
            if isinstance(architecture, str) and architecture:
                return {**values, "weights": f"timm:{architecture}"}
        return values


class ImageHeadSettings(ClassificationSettings):
    """``[head]`` of classification: pooled features to labels."""

    layers: Positive = 1
    """Linear layers; more than one puts ReLU and dropout between them."""
    width: Positive | None = None
    """Width of the hidden layers; ``None`` takes the backbone's channels."""
    dropout: Share = 0.2
    """Before each linear layer."""
    pooling: Literal["mean", "max", "mean-max"] = "mean"
    """How a cell of the feature map becomes one vector."""
    grid: Positive = 1
    """Cells on each side of the map that are pooled apart; 2 keeps where in the image
    something is, roughly, which a single vector does not."""


class BoxHeadSettings(HeadSettings):
    """``[head]`` of a detector; SSDLite has no more than these."""

    features: tuple[str, ...] = ()
    """Maps to read, fine to coarse; empty takes the last map of each stride from 4 on
    (8 on for RetinaNet and SSDLite)."""
    score_threshold: Share = 0.05
    """Detections with a lower score are dropped."""
    nms_threshold: Share = 0.5
    """Of two boxes of one class that overlap more, the lower scored one is dropped."""
    detections: Positive = 100
    """Most detections in one image."""


class DetectorSettings(BoxHeadSettings):
    """``[head]`` of a detector with a feature pyramid."""

    design: Literal["v1", "v2"] = "v1"
    """``v2`` is that of torchvision's models whose names end so: normalised layers,
    two convolutions that propose, four before the boxes; RetinaNet's box loss is
    GIoU."""
    channels: Positive = 256
    """Width of the pyramid and of the convolutions behind it."""
    anchor_sizes: tuple[Positive | tuple[Positive, ...], ...] = ()
    """Side or sides of the anchors in pixels, for each level of the pyramid; empty
    takes 8 times the stride (4 times for RetinaNet, which adds two larger ones to
    every single side)."""


class RegionSettings(DetectorSettings):
    """``[head]`` of Faster and Mask R-CNN; smaller numbers suit small images."""

    proposals: Positive | None = None
    """Most regions that are proposed in one image; ``None`` takes torchvision's, 2000
    in training and 1000 otherwise."""
    sampled: Positive = 512
    """Regions of each image that the loss of classes and boxes is taken over."""
    width: Positive = 1024
    """Width of the layers between a region and its class."""


class SegmenterSettings(HeadSettings):
    """``[head]`` of semantic segmentation."""

    features: tuple[str, ...] = ()
    """Maps to read, fine to coarse; empty takes what the decoder was designed for."""
    channels: Positive | None = None
    """Width of the decoder; ``None`` takes torchvision's."""


class FcnSettings(SegmenterSettings):
    """``[head]`` of segmentation with a fully convolutional network."""

    auxiliary: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of a second loss on an earlier map (torchvision: 0.5); 0 leaves it
    out."""


class DeepLabSettings(FcnSettings):
    """``[head]`` of segmentation with DeepLabV3."""

    rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (12, 24, 36)
    """Dilation of the 3x3 convolutions, in positions of the map: torchvision's, made
    for maps of stride 8; (6, 12, 18) look as far at stride 16, (3, 6, 9) at 32."""


class ImageSettings(DataSettings):
    """What all data modules for images have in common."""

    path: str = ""
    """Folder or file with the samples, or ``asset:NAME``; split at random unless
    ``validation_path`` and ``test_path`` are given."""
    validation_path: str = ""
    """Folder or file of the validation split."""
    test_path: str = ""
    """Folder or file of the test split."""
    validation_size: Size = 0.1
    """Share of the training samples (below 1) or their number, without a path."""
    test_size: Size = 0.2
    """Share of all samples (below 1) or their number, without a path."""
    group: str = ""
    """What must not be torn apart by a split (video, patient, plant): a column, or a
    regular expression on the file's path whose first group names it."""
    near_duplicates: bool = True
    """Keep files whose names differ in a trailing number or copy mark alone
    (``frame_001``, ``frame_002``; ``cat (1)``) on one side of a split."""
    rows: Positive | None = None
    """Use only so many samples for training and validation together (a validation
    split with a path is not counted), a seeded sample; ``None`` uses all."""
    size: Positive | None = None
    """Side of the images that the network sees; ``None`` takes what the weights were
    trained on (classification) or what the images have (detection, segmentation)."""
    max_pixels: Positive = 89_478_485
    """A larger image is refused before it is decoded (a decompression bomb)."""
    augmentation: Literal["none", "light", "strong", "trivial-augment"] = "none"
    """Random changes to training images, masks and boxes moved along."""


class ClassificationSettings(ImageSettings):
    """``[data]``: images with labels, from folders, a CSV file or IDX files."""

    kind: Literal["single-label", "multi-label"] = "single-label"
    """One class per image, or any number."""
    image: str = "image"
    """Column of the image's path in a CSV file, relative to the file."""
    label: str = "label"
    """Column of the label; for ``multi-label`` a separated string."""
    separator: str = ","
    """Between the labels of one row, for ``multi-label``."""
    labels: tuple[str, ...] = ()
    """The classes in order; empty takes those found in train, sorted."""
    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """Mixup's alpha (Zhang et al. 2018); 0 is off."""
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    """CutMix's alpha (Yun et al. 2019); 0 is off. With both, each batch gets one."""


class ObjectSettings(ImageSettings):
    """``[data]``: images with boxes, and masks, in COCO, VOC or YOLO files."""

    kind: Literal["boxes", "instances"] = "boxes"
    """Whether heads are given boxes, or boxes and a mask per object."""
    format: Literal["", "coco", "voc", "yolo"] = ""
    """Of the annotations; empty goes by the files found."""
    images: str = ""
    """Folder of the images, relative to ``path``; empty looks beside the
    annotations."""
    labels: tuple[str, ...] = ()
    """The classes in order, without a background; empty takes the file's own."""
    label_base: Literal["", "0", "1"] = ""
    """The first class number of files that have numbers for names; needed where a
    COCO file's ids or a YOLO file's numbers leave it open."""
    outside: Annotated[float, Field(ge=0.0)] = 1.0
    """Pixels that a box may reach beyond its image before it is a fault; it is cut."""
    max_size: Positive = 1333
    """Longest side of a resized image, where ``size`` is its shortest."""


class MaskSettings(ImageSettings):
    """``[data]``: images and one mask file each (PNG, palette or grey)."""

    kind: Literal["semantic"] = "semantic"
    """What the targets are: a class per pixel."""
    images: str = "images"
    """Folder of the images, inside ``path``."""
    masks: str = "masks"
    """Folder of the masks, inside ``path``; same names as the images."""
    labels: tuple[str, ...] = ()
    """Name of each value in the masks, from 0 on; 0 may be called background."""
    ignore: Annotated[int, Field(ge=0, le=255)] = 255
    """The value of pixels that count neither in the loss nor in a metric."""


class SceneSettings(DataSettings):
    """``[data]``: composited scenes: cut-out objects on photographs.

    Not photographs of objects: garments from Fashion-MNIST are scaled, tinted and laid
    on crops of real photos, so that boxes and masks are exact.
    """

    kind: Literal["boxes", "instances", "semantic"] = "boxes"
    """What the targets are: boxes, boxes with masks, or a class per pixel."""
    objects: str = "asset:fashion-mnist"
    """Folder with the IDX files of the objects, or ``asset:NAME``."""
    backgrounds: str = "asset:photos"
    """Folder with the photographs, or ``asset:NAME``."""
    train: Positive = 400
    """Scenes for training."""
    validation: Positive = 50
    """Scenes for validation; backgrounds and objects are not those of training."""
    test: Positive = 200
    """Scenes for testing; backgrounds and objects are nowhere else."""
    size: Annotated[int, Field(ge=32)] = 224
    """Side of a scene in pixels."""
    max_pixels: Positive = 89_478_485
    """A larger photograph is refused before it is decoded (a decompression bomb)."""
    most: Positive = 4
    """Most objects in one scene; the least is none."""
    labels: tuple[str, ...] = ("Trouser", "Pullover", "Dress", "Sneaker", "Bag")
    """Classes of objects to use: by default those that differ at any size; empty takes
    all ten."""
    augmentation: Literal["none", "light", "strong"] = "none"
    """Random changes to training scenes, masks and boxes moved along."""
