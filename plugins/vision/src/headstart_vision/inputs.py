"""What a user passes to ``predict``: files, folders, pictures in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import DataError, Fault
from headstart_vision import images
from headstart_vision.images import ImageError
from headstart_vision.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Sample


def picture_inputs(inputs: Sequence[Any], limit: int) -> list[Sample]:
    """Samples from what users pass to ``predict``; see ``ImageModule.from_inputs``.

    Args:
        inputs: Files, folders, Pillow images, arrays and tensors.
        limit: Most pixels of an image.

    Raises:
        DataError: Inputs that are no images; names them all.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    files: list[int] = []
    for number, given in enumerate(inputs, start=1):
        if isinstance(given, (str, Path)):
            for path in expanded(Path(given).expanduser(), faults):
                files.append(len(samples))
                samples.append({"id": str(path), "path": str(path)})
            continue
        try:
            array = images.to_array(given, limit)
            samples.append({"id": f"input {number}", "array": array})
        except ImageError as error:
            where = f"input {number}"
            faults.append(Fault(error.what, where, error.why, error.fix))
    looks = images.inspect([samples[i]["path"] for i in files], limit)
    for i, look in zip(files, looks, strict=True):
        if isinstance(look, ImageError):
            where = samples[i]["path"]
            faults.append(Fault(look.what, where, look.why, look.fix))
    if faults:
        raise DataError(*faults)
    if not samples:
        raise DataError("no image to predict for", fix="give files or folders")
    return samples
