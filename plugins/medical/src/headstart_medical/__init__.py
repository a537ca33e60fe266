"""Medical images for headstart: segmentation and classification of volumes, on MONAI.

Research software, not a medical device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.hookspecs import hookimpl
from headstart.specs import (
    DataSpec,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
)
from headstart_medical.catalogue import backbone_specs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.specs import BackboneSpec

__version__ = "0.1.0"
HOOK_API = "1.0"

_GRID = {"channels": ["T1"], "spacing": [1.0, 1.0, 1.0], "patch": [16, 16, 16]}
_VOXELS = {
    "kind": "volume-segmentation",
    "labels": ["background", "tumour", "oedema"],
    "counts": [1000, 30, 60],
    "modality": "mri",
    **_GRID,
}
_CLASSES = {
    "kind": "single-label",
    "labels": ["without", "with"],
    "counts": [6, 4],
    "channels": ["T1"],
    "spacing": [1.0, 1.0, 1.0],
    "shape": [16, 16, 16],
    "dimensions": 3,
    "slices": False,
}
_HIDDEN = {"kind": "reconstruction", "modality": "mri", **_GRID}


@hookimpl
def register_backbones() -> Sequence[BackboneSpec]:
    return backbone_specs()


@hookimpl
def register_heads() -> Sequence[HeadSpec]:
    return [
        HeadSpec(
            name="medical/segmentation",
            summary="a class for every voxel; windows slide over whole volumes",
            factory="headstart_medical.heads:build_segmentation",
            settings="headstart_medical.head_settings:SegmentationSettings",
            needs=("volume",),
            targets=("mask",),
            kinds=("volume-segmentation",),
            metrics=("dice", "hd95", "lesion-f1", "volume-error"),
            sample="headstart_medical.heads:sample_masks",
            sample_task=_VOXELS,
            options="headstart_medical.options:SegmentationOptions",
        ),
        HeadSpec(
            name="medical/classifier",
            summary="one class for a volume or a slice, with calibrated probabilities",
            factory="headstart_medical.classifier:build_classifier",
            settings="headstart_medical.head_settings:ClassifierSettings",
            needs=("volume", "map"),
            targets=("labels",),
            kinds=("single-label",),
            metrics=("auroc", "sensitivity-at-95", "brier", "accuracy"),
            sample="headstart.classification:sample_labels",
            sample_task=_CLASSES,
        ),
        HeadSpec(
            name="medical/reconstruction",
            summary="what is behind the hidden parts of a volume, for pretraining",
            factory="headstart_medical.reconstruction:build_reconstruction",
            settings="headstart_medical.head_settings:ReconstructionSettings",
            needs=("volume",),
            targets=("target", "hidden"),
            kinds=("reconstruction",),
            metrics=("relative-error", "reconstruction-error"),
            sample="headstart_medical.reconstruction:sample_volumes",
            sample_task=_HIDDEN,
        ),
    ]


_WHOLE = ("extent", "affine", "original_affine", "original_shape", "truth")


def _data(name: str, summary: str, factory: str, **varying: Any) -> DataSpec:
    return DataSpec(
        name=f"medical/{name}",
        summary=summary,
        factory=f"headstart_medical.{factory}",
        settings=f"headstart_medical.data_settings:{varying.pop('settings')}",
        tiny=f"headstart_medical.tiny:{varying.pop('tiny')}",
        **varying,
    )


@hookimpl
def register_data() -> Sequence[DataSpec]:
    return [
        _data(
            "volumes",
            "NIfTI, NRRD or DICOM volumes with masks, or without for pretraining",
            "volumes:Volumes",
            settings="VolumeSettings",
            tiny="tiny_volumes",
            yields=("image", "mask", *_WHOLE, "target", "hidden"),
        ),
        _data(
            "scans",
            "volumes or slices with a class each",
            "scans:Scans",
            settings="ScanSettings",
            tiny="tiny_scans",
            yields=("image", "labels"),
        ),
        _data(
            "simulated-lesions",
            "real volumes with simulated lesions; real patients in the test split",
            "simulated:Lesions",
            settings="LesionSettings",
            tiny="tiny_lesions",
            yields=("image", "mask", *_WHOLE),
        ),
        _data(
            "simulated-lesion-slices",
            "slices with and without simulated lesions; real patients in the test",
            "simulated:LesionSlices",
            settings="LesionSliceSettings",
            tiny="tiny_lesion_slices",
            yields=("image", "labels"),
        ),
    ]


def _metric(
    name: str,
    summary: str,
    inputs: tuple[str, ...],
    task: Mapping[str, Any],
    *,
    goal: str = "max",
    scores: bool = True,
) -> MetricSpec:
    code = f"headstart_medical.metrics:{name.replace('-', '_')}"
    return MetricSpec(
        name=f"medical/{name}",
        summary=summary,
        factory=code,
        inputs=inputs,
        kinds=(task["kind"],),
        goal=goal,  # type: ignore[arg-type]
        sample="headstart_medical.metrics:sample_outputs",
        sample_task=task,
        scores=f"{code}_scores" if scores else "",
    )


@hookimpl
def register_metrics() -> Sequence[MetricSpec]:
    masks, classes = ("prediction", "target", "spacing"), ("probabilities", "target")
    return [
        _metric("dice", "overlap, mean over classes and cases", masks, _VOXELS),
        _metric(
            "hd95",
            "95th percentile of the surface distance, mm",
            masks,
            _VOXELS,
            goal="min",
        ),
        _metric("asd", "mean surface distance, mm", masks, _VOXELS, goal="min"),
        _metric("volume-error", "of the volume, ml", masks, _VOXELS, goal="min"),
        _metric(
            "relative-volume-error",
            "of the volume, as a part of the true one",
            masks,
            _VOXELS,
            goal="min",
        ),
        _metric("lesion-f1", "lesions found and not invented", masks, _VOXELS),
        _metric("lesion-recall", "share of the lesions that is found", masks, _VOXELS),
        _metric("false-lesions", "invented lesions a case", masks, _VOXELS, goal="min"),
        _metric("auroc", "area under the ROC curve", classes, _CLASSES, scores=False),
        _metric(
            "sensitivity-at-95",
            "sensitivity where the specificity is .95",
            classes,
            _CLASSES,
            scores=False,
        ),
        _metric(
            "brier",
            "mean squared error of the probabilities, 0 to 1",
            classes,
            _CLASSES,
            goal="min",
        ),
        _metric("accuracy", "share with the right class", classes, _CLASSES),
        _metric(
            "reconstruction-error",
            "of hidden voxels, in normalised grey values",
            ("error",),
            _HIDDEN,
            goal="min",
        ),
        _metric(
            "relative-error",
            "of hidden voxels, as a part of what their mean would give",
            ("error", "blank"),
            _HIDDEN,
            goal="min",
        ),
    ]


@hookimpl
def register_recipes() -> Sequence[RecipeSource]:
    return [
        RecipeSource(f"medical/{name}", "headstart_medical", f"recipes/{name}.toml")
        for name in ("tumour-segmentation", "brain-extraction", "classify", "pretrain")
    ]


@hookimpl
def register_weight_sources() -> Sequence[WeightSourceSpec]:
    return [
        WeightSourceSpec(
            "deepbrain",
            "deepbrain's frozen graph (asset:deepbrain, or a FILE.pb)",
            "headstart_medical.deepbrain:resolve_deepbrain",
        ),
        WeightSourceSpec(
            "monai",
            "a MONAI bundle: folder, zip, asset:NAME or its name on the hub",
            "headstart_medical.bundles:resolve_bundle",
        ),
    ]
