"""What a user passes to ``predict``: files, folders, pictures in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data import DataModule
from headstart.errors import Fault
from headstart_vision import images
from headstart_vision.images import ImageError
from headstart_vision.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart.data import Sample
    from headstart_vision.settings import ImageSettings, SceneSettings


class PictureModule(DataModule):
    """What every data module of this plugin does with pictures to predict for."""

    settings: ImageSettings | SceneSettings

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Samples from image files, folders of them, Pillow images, arrays and tensors.

        Folders are searched through, in the order of their files' names. Arrays are
        (height, width) or (height, width, channels), tensors (channels, height, width).

        Raises:
            DataError: Inputs that are no images, by :meth:`leave_out`.
        """
        samples, faults = picture_inputs(inputs, self.settings.max_pixels)
        self.leave_out(faults, len(samples))
        return samples

    def write_predictions(
        self,
        folder: Path,
        samples: Sequence[Sample],
        predictions: Iterable[dict[str, Any]],
    ) -> list[Path]:
        """COCO's JSON and annotated images, masks, or tables of labels."""
        from headstart_vision.predictions import write_predictions

        return write_predictions(folder, samples, predictions, self.task)


def picture_inputs(
    inputs: Sequence[Any], limit: int
) -> tuple[list[Sample], list[Fault]]:
    """Samples from what users pass to ``predict``.

    Every file is decoded here once, beside the time that it is predicted for: a
    damaged one among thousands is told before the first prediction, with all others.

    Args:
        inputs: Files, folders, Pillow images, arrays and tensors.
        limit: Most pixels of an image.

    Returns:
        Samples of the good ones, and a fault of each that is no image.
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
    bad = set()
    for i, look in zip(files, looks, strict=True):
        if isinstance(look, ImageError):
            bad.add(i)
            where = samples[i]["path"]
            faults.append(Fault(look.what, where, look.why, look.fix))
    if not samples and not faults:
        faults.append(Fault("no image to predict for", fix="give files or folders"))
    return [sample for i, sample in enumerate(samples) if i not in bad], faults
