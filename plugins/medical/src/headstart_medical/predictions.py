"""Predictions as files: masks as NIfTI on the original grid, and tables."""

from __future__ import annotations

import base64
import csv
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError

from headstart_medical import run_lengths
from headstart_medical.measures import as_array, lesions_of, volumes_ml
from headstart_medical.paths import stem
from headstart_medical.reading import read_volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Form = tuple[np.ndarray, int]

CSV_FILE, README = "predictions.csv", "README.txt"
MASKS, PROBABILITIES = "masks", "probabilities"
NOTICE = "Not a medical device: for research only, never for diagnosis or treatment."
FORMS = ("sform", "qform")
SCANNER = 1
"""NIfTI's code for the scanner's own space."""
STEPS = 255
"""A probability is kept to 1/255."""


def segmentation_rows(
    outputs: Mapping[str, Any], labels: Sequence[str], *, probabilities: bool = False
) -> list[dict[str, Any]]:
    """Predicted masks as JSON can hold them, a row per case.

    Args:
        outputs: ``prediction``, class of each voxel, uint8 (x, y, z) per case on its
            original grid; ``spacing``, mm (cases, 3); ``confidence``, the foreground's
            probability, (x, y, z) per case.
        labels: Names of the classes, background first.
        probabilities: Keep the confidence as well.

    Returns:
        Each row has ``millilitres`` and ``lesions`` (connected components) by label,
        the background left out; ``mask``, see :mod:`headstart_medical.run_lengths`;
        if asked for ``probability``, a compressed volume as text.
    """
    rows = []
    for index, mask in enumerate(map(as_array, outputs["prediction"])):
        spacing = as_array(outputs["spacing"][index]).tolist()
        volumes = volumes_ml(mask, spacing, len(labels)).round(4).tolist()
        counts = [lesions_of(mask == k)[1] for k in range(1, len(labels))]
        row: dict[str, Any] = {
            "millilitres": dict(zip(labels[1:], volumes, strict=True)),
            "lesions": dict(zip(labels[1:], counts, strict=True)),
            "mask": run_lengths.encode(mask),
        }
        if probabilities:
            likely = as_array(outputs["confidence"][index]).astype(np.float32)
            steps = np.rint(likely.clip(0, 1) * STEPS).astype(np.uint8)
            packed = zlib.compress(steps.tobytes(), 1)
            row["probability"] = base64.b64encode(packed).decode()
        rows.append(row)
    return rows


def write_predictions(
    folder: Path,
    names: Sequence[str],
    images: Sequence[Path | str],
    predictions: Iterable[Mapping[str, Any]],
    task: Mapping[str, Any],
) -> list[Path]:
    """Write predictions, one case after the other.

    - Segmentation: ``masks/NAME.nii.gz``, on the grid of the input, with its affine;
      ``probabilities/NAME.nii.gz`` of the foreground where the rows have it; and
      ``predictions.csv`` with each label's volume and number of lesions.
    - Classification: ``predictions.csv`` with the label and all probabilities.

    Nothing else of an input's header is copied: free text in it may name the patient.

    Args:
        folder: An empty one.
        names: What each input is called.
        images: Each input's first volume, a file or a folder of a DICOM series; its
            grid is the mask's. Not read for classification.
        predictions: What the head's ``decode`` gives for each, read one at a time.
        task: ``kind`` and ``labels``.

    Returns:
        The table, and the folders of volumes.
    """
    segmented = task["kind"] == "volume-segmentation"
    labels = [str(label) for label in task["labels"]]
    columns = [f"{label} {what}" for label in labels[1:] for what in ("ml", "lesions")]
    columns = ["mask", *columns] if segmented else ["label", "probability", *labels]
    with (folder / CSV_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", *columns])
        for name, bare, image, row in zip(
            names, output_names(names), images, predictions, strict=True
        ):
            if segmented:
                place = f"{MASKS}/{bare}.nii.gz"
                _write_volumes(folder, bare, Path(image), row)
                told = [
                    row[what][label]
                    for label in labels[1:]
                    for what in ("millilitres", "lesions")
                ]
                writer.writerow([name, place, *told])
            else:
                given = row.get("probabilities", {})
                shares = [given.get(label, "") for label in labels]
                writer.writerow([name, row["label"], row["probability"], *shares])
    text = f"{NOTICE}\n"
    if segmented:
        values = ", ".join(f"{value} {label}" for value, label in enumerate(labels))
        text += f"\nValues in {MASKS}/: {values}.\n"
        text += f"{CSV_FILE}: volumes in millilitres, lesions are connected parts.\n"
    (folder / README).write_text(text, encoding="utf-8")
    written = (CSV_FILE, MASKS, PROBABILITIES)
    return [folder / name for name in written if (folder / name).exists()]


def output_names(names: Sequence[str]) -> list[str]:
    """A file's name for each input without its ending, no two alike."""
    taken: set[str] = set()
    found = []
    for name in names:
        bare = stem(Path(name).name) or Path(name).name
        first = place = re.sub(r"[^\w.-]+", "-", bare).strip(".-") or "case"
        number = 1
        # As a file system compares names that takes upper for lower case.
        while place.casefold() in taken:
            number += 1
            place = f"{first}-{number}"
        taken.add(place.casefold())
        found.append(place)
    return found


def _write_volumes(
    folder: Path, name: str, image: Path, row: Mapping[str, Any]
) -> None:
    affine = read_volume(image).affine
    forms = _forms(image, affine)
    mask = run_lengths.decode(row["mask"])
    _save(mask, affine, forms, folder / MASKS / f"{name}.nii.gz")
    if "probability" in row:
        packed = zlib.decompress(base64.b64decode(row["probability"]))
        steps = np.frombuffer(packed, dtype=np.uint8).reshape(mask.shape)
        place = folder / PROBABILITIES / f"{name}.nii.gz"
        _save(steps, affine, forms, place, slope=1 / STEPS)


def _forms(image: Path, affine: np.ndarray) -> list[Form]:
    """What NIfTI's sform and qform say of a volume's grid: an affine, and its code.

    Viewers read one of them, and not all the same one: both are as the volume has them,
    so that its mask is where the volume is, and what it lacks is as the other. Where a
    NIfTI says nothing of a space neither does its mask.
    """
    if not (image.is_file() and image.suffix.lower() in (".nii", ".gz")):
        return [(affine, SCANNER)] * 2
    loaded: Any = nib.load(image)
    try:
        told = [getattr(loaded, f"get_{form}")(coded=True) for form in FORMS]
    except (ValueError, HeaderDataError):
        # A quaternion that is none: the affine is the other form's.
        told = [(affine, int(loaded.header["sform_code"]))] * 2
    code = int(told[0][1] or told[1][1])
    # Lengths in another unit than ours are left where they are read.
    same = np.array_equal(loaded.affine, affine)
    return [
        (matrix if same and own else affine, int(own) or code) for matrix, own in told
    ]


def _save(
    volume: np.ndarray,
    affine: np.ndarray,
    forms: Sequence[Form],
    path: Path,
    slope: float = 1.0,
) -> None:
    """A volume of uint8 as NIfTI; stored value times ``slope`` is what is meant."""
    path.parent.mkdir(exist_ok=True)
    saved: Any = Nifti1Image(volume, affine)  # type: ignore[no-untyped-call]
    for form, (matrix, code) in zip(FORMS, forms, strict=True):
        getattr(saved, f"set_{form}")(matrix, code)
    saved.header.set_xyzt_units("mm")
    saved.header["descrip"] = NOTICE.partition(":")[0].encode()
    if slope != 1:
        saved.header.set_slope_inter(slope, 0)
    saved.to_filename(path)
