"""Heads that give every pixel a class: DeepLabV3, FCN and LR-ASPP of torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from headstart.errors import Fault, UserError, nearest
from headstart.heads import Head
from headstart_vision.annotations import rle
from headstart_vision.pixels import (
    IGNORED,
    classes_at,
    enlarged,
    nearest_at,
    pixel_cross_entropy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_vision.settings import (
        DeepLabSettings,
        FcnSettings,
        SegmenterSettings,
    )

BATCH = ("mask", "image_sizes", "original_sizes")
# torchvision's width of LR-ASPP; the other decoders have theirs built in.
LRASPP_WIDTH = 128


class Segmenter(Head):
    """A decoder from feature maps to a class per pixel.

    Its logits are enlarged to the batch's height and width (bilinear, corners not
    aligned), as torchvision does. The loss is the mean cross entropy over labelled
    pixels, with that of the auxiliary decoder added; its unit is a labelled pixel.

    Args:
        classifier: torchvision's decoder.
        reads: The maps that it reads.
        labels: Names of the classes, in order.
        auxiliary: Decoder of a second loss, the map that it reads, and its weight.
    """

    def __init__(
        self,
        classifier: nn.Module,
        reads: Sequence[Feature],
        labels: Sequence[str],
        auxiliary: tuple[nn.Module, Feature, float] | None = None,
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.maps = tuple(feature.name for feature in reads)
        # Every map has the batch's size once its stride is taken back.
        self.stride = reads[0].stride
        self.classifier = tolerate_single_values(classifier)
        self.reads = self.maps
        self.upstream = {"classifier.": "classifier."}
        self.aux_classifier: nn.Module | None = None
        if auxiliary is not None:
            decoder, feature, self.auxiliary_weight = auxiliary
            self.aux_classifier = tolerate_single_values(decoder)
            self.auxiliary_map = feature.name
            self.reads = (feature.name, *self.maps)
            self.upstream["aux_classifier."] = "aux_classifier."

    @property
    def reduction(self) -> str:
        return f"maps {', '.join(self.reads)}"

    def reduce(self, state: State) -> State:
        """Leave out all but the maps that it reads, masks and sizes."""
        return {key: state[key] for key in (*self.reads, *BATCH) if key in state}

    def forward(self, state: State) -> State:
        """Add ``logits``, (batch, classes, height, width) float32.

        And ``auxiliary_logits`` of the same shape, where there is a second loss and a
        mask to learn it from.
        """
        first = state[self.maps[0]]
        size = [side * self.stride for side in first.shape[-2:]]
        state = {**state, "logits": enlarged(self._decode(state), size)}
        if self.aux_classifier is not None and "mask" in state:
            logits = self.aux_classifier(state[self.auxiliary_map])
            state["auxiliary_logits"] = enlarged(logits, size)
        return state

    def _decode(self, state: State) -> Tensor:
        return cast("Tensor", self.classifier(state[self.maps[0]]))

    def loss(self, state: State) -> Tensor:
        loss = pixel_cross_entropy(state["logits"], state["mask"])
        if self.aux_classifier is not None:
            second = pixel_cross_entropy(state["auxiliary_logits"], state["mask"])
            loss = loss + self.auxiliary_weight * second
        return loss

    def weight(self, batch: State) -> Tensor:
        """Labelled pixels in the batch."""
        mask: Tensor = batch["mask"]
        return (mask != IGNORED).sum().float()

    def outputs(self, state: State) -> dict[str, Any]:
        """``prediction`` and ``target``: uint8 (height, width) per image; ``size``.

        All at the original size: logits are cut to the image, without the padding,
        and resized (bilinear) before the highest is taken; target masks take the
        nearest pixel.
        """
        logits = state["logits"]
        whole = torch.tensor([logits.shape[-2:]] * len(logits))
        inside: Tensor = state.get("image_sizes", whole)
        original: Tensor = state.get("original_sizes", inside)
        outputs: dict[str, Any] = {"prediction": [], "size": original}
        if "mask" in state:
            outputs["target"] = []
        for row, (cut, size) in enumerate(
            zip(inside.tolist(), original.tolist(), strict=True)
        ):
            part = (row, ..., slice(cut[0]), slice(cut[1]))
            outputs["prediction"].append(classes_at(logits[part], size))
            if "mask" in state:
                mask = state["mask"][part].to(torch.uint8)
                outputs["target"].append(nearest_at(mask, size))
        return outputs

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``classes``: share of the pixels by name; ``masks``: COCO's RLE by name.

        Classes without a pixel are left out.
        """
        rows = []
        for prediction in outputs["prediction"]:
            tensor = isinstance(prediction, Tensor)
            values = prediction.cpu().numpy() if tensor else prediction
            found = {
                label: values == value
                for value, label in enumerate(self.labels)
                if (values == value).any()
            }
            rows.append(
                {
                    "classes": {k: round(float(v.mean()), 6) for k, v in found.items()},
                    "masks": {k: rle.from_mask(v) for k, v in found.items()},
                }
            )
        return rows

    def adapt_classes(
        self, name: str, theirs: Tensor, ours: Tensor, classes: Sequence[str]
    ) -> Tensor | None:
        """Rows of the last convolutions, of the classes that both know."""
        # The first: counters of normalisations have no shape at all.
        last = name in self._last_layers() and len(ours) == len(self.labels)
        if not last or theirs.shape != (len(classes), *ours.shape[1:]):
            return None
        adapted = ours.detach().clone()
        for row, label in enumerate(self.labels):
            if label in classes:
                adapted[row] = theirs[list(classes).index(label)].to(adapted)
        return adapted

    def _last_layers(self) -> set[str]:
        """Names of the parameters that have a row per class."""
        layers = ["classifier.4", "aux_classifier.4"]
        return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_vision.sections import segmentation_sections

        sections: Sequence[Section] = segmentation_sections(evaluation)
        return sections


class LiteSegmenter(Segmenter):
    """LR-ASPP: what a coarse map means, where a fine map has it."""

    def _decode(self, state: State) -> Tensor:
        low, high = (state[name] for name in self.maps)
        return cast("Tensor", self.classifier({"low": low, "high": high}))

    def _last_layers(self) -> set[str]:
        layers = ["classifier.low_classifier", "classifier.high_classifier"]
        return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


class TolerantBatchNorm(nn.BatchNorm2d):
    """BatchNorm that goes by its running statistics where it has a single value.

    ASPP normalises one pooled vector per image. Of a single image (a batch's part,
    an epoch's rest) it has no variance, and torch refuses.
    """

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or values.numel() > values.shape[1]:
            return super().forward(values)
        return F.batch_norm(
            values,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
        )


def tolerate_single_values(decoder: nn.Module) -> nn.Module:
    """Put :class:`TolerantBatchNorm` in place of a new decoder's BatchNorms."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                tolerant = TolerantBatchNorm(
                    child.num_features, child.eps, child.momentum
                )
                setattr(parent, name, tolerant)
    return decoder


def build_deeplab(
    settings: DeepLabSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> Segmenter:
    """The head ``vision/deeplab``: DeepLabV3 (Chen et al. 2017).

    It reads the backbone's last map unless ``settings.features`` names another one;
    the auxiliary decoder reads the map before that, or the first of two that are
    named. torchvision's own networks widen their last stages to stride 8 or 16; on
    others a map of stride 16 draws finer outlines than the last one.

    Raises:
        UserError: The task is of another kind or has too many classes; maps that are
            not there.
    """
    _check_classes(task)
    main, auxiliary = _main_and_auxiliary(settings, features, task)
    inputs, classes = cast("int", main.channels), len(task["labels"])
    if settings.channels is None:
        decoder: nn.Module = DeepLabHead(inputs, classes, settings.rates)
    else:
        # As DeepLabHead, whose width is fixed.
        width = settings.channels
        decoder = nn.Sequential(
            ASPP(inputs, settings.rates, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, classes, 1),
        )
    return Segmenter(decoder, [main], task["labels"], auxiliary)


def build_fcn(
    settings: FcnSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> Segmenter:
    """The head ``vision/fcn``: a fully convolutional network (Long et al. 2015).

    Reads and raises as :func:`build_deeplab`.
    """
    _check_classes(task)
    main, auxiliary = _main_and_auxiliary(settings, features, task)
    inputs, classes = cast("int", main.channels), len(task["labels"])
    if settings.channels is None:
        decoder: nn.Module = FCNHead(inputs, classes)
    else:
        # As FCNHead, whose width is a quarter of its input's.
        decoder = nn.Sequential(
            nn.Conv2d(inputs, settings.channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(settings.channels),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(settings.channels, classes, 1),
        )
    return Segmenter(decoder, [main], task["labels"], auxiliary)


def build_lraspp(
    settings: SegmenterSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> LiteSegmenter:
    """The head ``vision/lraspp``: Lite R-ASPP (Howard et al. 2019).

    It reads the backbone's last map, and of those that are finer the first one of
    stride 8 or what is nearest to 8, unless ``settings.features`` names two others.

    Raises:
        UserError: As :func:`build_deeplab`; no map is finer than the last one.
    """
    _check_classes(task)
    maps = _maps(features)
    if settings.features:
        low, high = _named(settings, maps, (2,))
    else:
        high = maps[-1]
        finer = [feature for feature in maps if feature.stride < high.stride]
        if not finer:
            raise UserError(
                "LR-ASPP reads a fine and a coarse map, the backbone gives one size",
                where="head.features",
                why=f"it gives {_listed(maps)}",
                fix="choose another backbone, or keep more of its stages",
            )
        stride = min({m.stride for m in finer}, key=lambda s: (abs(s - 8), s))
        # torchvision's weights know the first of that stride.
        low = next(m for m in finer if m.stride == stride)
    decoder = LRASPPHead(
        cast("int", low.channels),
        cast("int", high.channels),
        len(task["labels"]),
        settings.channels or LRASPP_WIDTH,
    )
    return LiteSegmenter(decoder, [low, high], task["labels"])


def sample_targets(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid masks for tests: 64x64, stripes of all classes; every other image is 48
    pixels high, and its padding is not labelled."""
    stripes = torch.arange(64) % len(task["labels"])
    mask = stripes.repeat(batch_size, 64, 1)
    mask[1::2, 48:] = IGNORED
    return {"mask": mask}


def _check_classes(task: Mapping[str, Any]) -> None:
    if len(task["labels"]) > IGNORED:
        raise UserError(
            f"there are {len(task['labels'])} classes of pixels",
            where="data.labels",
            why=f"masks are 8-bit and {IGNORED} stands for not labelled",
            fix=f"merge classes until there are at most {IGNORED}",
        )


def _maps(features: Mapping[str, Feature]) -> list[Feature]:
    maps = [feature for feature in features.values() if feature.kind == "map"]
    if not maps:
        raise UserError(
            "the backbone leaves no feature maps in the state",
            where="head.name",
            why=f"it leaves {', '.join(features) or 'nothing'}",
            fix="choose a backbone with maps, e.g. vision/resnet",
        )
    return maps


def _listed(maps: Sequence[Feature]) -> str:
    return ", ".join(f"{feature.name} (stride {feature.stride})" for feature in maps)


def _named(
    settings: SegmenterSettings, maps: Sequence[Feature], counts: Sequence[int]
) -> list[Feature]:
    """The maps that the settings name.

    Raises:
        UserError: They are not there, too many or too few, or in another order.
    """
    where, names = "head.features", [feature.name for feature in maps]
    faults = [
        Fault(f"the backbone has no map {name!r}", where, fix=nearest(name, names))
        for name in settings.features
        if name not in names
    ]
    if len(settings.features) not in counts:
        wanted = " or ".join(map(str, counts))
        what = (
            f"{len(settings.features)} maps are named, {settings.name} reads {wanted}"
        )
        faults.append(Fault(what, where, f"there are {_listed(maps)}"))
    if faults:
        raise UserError(*faults)
    places = [names.index(name) for name in settings.features]
    if places != sorted(set(places)):
        right = [names[place] for place in sorted(set(places))]
        raise UserError(
            f"the maps {', '.join(settings.features)} are not fine to coarse",
            where=where,
            fix=f"head.features = {right}".replace("'", '"') if len(right) > 1 else "",
        )
    return [maps[place] for place in places]


def _main_and_auxiliary(
    settings: FcnSettings, features: Mapping[str, Feature], task: Mapping[str, Any]
) -> tuple[Feature, tuple[nn.Module, Feature, float] | None]:
    """The map that is decoded, and the decoder of the auxiliary loss if there is one.

    Raises:
        UserError: The maps named are not there; none is left for the auxiliary loss.
    """
    maps = _maps(features)
    chosen = [maps[-1]]
    if settings.features:
        chosen = _named(settings, maps, (1, 2) if settings.auxiliary else (1,))
    main = chosen[-1]
    if not settings.auxiliary:
        return main, None
    earlier = chosen[:-1] or maps[: maps.index(main)]
    if not earlier:
        raise UserError(
            f"no map comes before {main.name!r} for the auxiliary loss",
            where="head.auxiliary",
            why=f"there are {_listed(maps)}",
            fix="head.auxiliary = 0, or decode a later map",
        )
    second = earlier[-1]
    decoder = FCNHead(cast("int", second.channels), len(task["labels"]))
    return main, (decoder, second, settings.auxiliary)
