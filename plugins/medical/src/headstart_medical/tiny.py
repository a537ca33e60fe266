"""Tiny data sets for tests: balls in noise, written as NIfTI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

SIDES = (20, 18, 16)
SPACING = (1.0, 1.0, 1.5)
PATCH = (16, 16, 16)


def tiny_volumes(folder: Path) -> dict[str, Any]:
    """Ten cases with a bright ball each, and its label.

    Returns:
        Settings of ``[data]`` that read them.
    """
    for i in range(10):
        volume, ball = _volume(i)
        (folder / f"case{i}").mkdir()
        _write(folder / f"case{i}" / "image.nii.gz", volume + 60 * ball)
        _write(folder / f"case{i}" / "label.nii.gz", ball.astype(np.uint8))
    return {
        "name": "medical/volumes",
        "path": str(folder),
        "labels": ["background", "ball"],
        "spacing": list(SPACING),
        "modality": "mri",
        "patch": list(PATCH),
        "patches_per_case": 2,
        "margin": 2,
        "block": 4,
        "small": "pad",
    }


def tiny_scans(folder: Path) -> dict[str, Any]:
    """Sixteen cases, half of them with a bright ball, in a folder for each class.

    Returns:
        Settings of ``[data]`` that read them.
    """
    for i in range(16):
        volume, ball = _volume(i)
        label = ("healthy", "tumour")[i % 2]
        (folder / label).mkdir(exist_ok=True)
        _write(folder / label / f"case{i}.nii.gz", volume + 60 * ball * (i % 2))
    return {
        "name": "medical/scans",
        "path": str(folder),
        "shape": list(PATCH),
        "modality": "mri",
    }


def tiny_lesions(folder: Path) -> dict[str, Any]:
    """Two healthy volumes to train on, one to validate on, two patients to test on.

    Returns:
        Settings of ``[data]`` that read them.
    """
    for i, part in enumerate(("healthy", "healthy", "other", "real", "real")):
        volume, ball = _volume(i)
        case = folder / part / f"case{i}"
        case.mkdir(parents=True)
        real = part == "real"
        _write(case / "image.nii.gz", volume + 60 * ball * real)
        where = ball if real else volume > 50
        _write(case / "label.nii.gz", where.astype(np.uint8))
    return {
        "name": "medical/simulated-lesions",
        "path": str(folder / "healthy"),
        "validation_path": str(folder / "other"),
        "test_path": str(folder / "real"),
        "spacing": list(SPACING),
        "modality": "mri",
        "patch": list(PATCH),
        "patches_per_case": 2,
        "margin": 2,
        "small": "pad",
        **_SIMULATION,
    }


def tiny_lesion_slices(folder: Path) -> dict[str, Any]:
    """As :func:`tiny_lesions`, for slices."""
    made = tiny_lesions(folder)
    kept = ("path", "validation_path", "test_path", "modality", *_SIMULATION)
    return {
        "name": "medical/simulated-lesion-slices",
        "shape": list(PATCH),
        **{key: made[key] for key in kept},
    }


_SIMULATION: dict[str, Any] = {
    "variants": 2,
    "validation_variants": 1,
    "radius": [2.0, 4.0],
    "slice_thickness": [1.0, 2.0],
}


def _volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright body in dark air, and where a ball is inside it."""
    generator = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, SIDES), indexing="ij"), -1)
    middle = (np.array(SIDES) - 1) / 2
    body = (((places - middle) / (0.46 * np.array(SIDES))) ** 2).sum(-1) < 1
    centre = middle + generator.uniform(-3, 3, 3)
    ball = ((places - centre) ** 2).sum(-1) < generator.uniform(2.5, 4.0) ** 2
    volume = 100.0 * body + generator.normal(0, 5, SIDES) * body
    return volume.astype(np.float32), ball


def _write(path: Path, array: np.ndarray) -> None:
    import nibabel

    library: Any = nibabel
    image = library.Nifti1Image(array, np.diag([*SPACING, 1.0]))
    image.set_sform(image.affine, code="scanner")
    library.save(image, path)
