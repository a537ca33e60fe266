"""What is wrong with settings of data, seen before any of it is read."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from headstart.errors import Fault

if TYPE_CHECKING:
    from headstart_vision.settings import ImageSettings


def check_settings(settings: ImageSettings) -> list[Fault]:
    """Faults of the settings that need no data to be seen."""
    faults = []
    if not settings.path:
        fix = "give your folder or file, e.g. data.path=photos"
        faults.append(Fault("data.path is empty", "data.path", fix=fix))
    for name in ("validation_size", "test_size"):
        size = getattr(settings, name)
        if size > 1 and size != int(size):
            what = f"{size} is neither a share below 1 nor a whole number of images"
            faults.append(Fault(what, f"data.{name}", fix=f"e.g. {int(size)}"))
    labels = Counter(getattr(settings, "labels", ()))
    if twice := sorted(label for label, count in labels.items() if count > 1):
        what = f"named twice: {', '.join(twice)}"
        faults.append(Fault(what, "data.labels", fix="name each once"))
    if "(" in settings.group:
        try:
            groups = re.compile(settings.group).groups
            why = "it has no group in parentheses" if not groups else ""
        except re.error as error:
            why = str(error)
        if why:
            what = f"{settings.group!r} is no pattern that names a group"
            fix = r'e.g. data.group="(patient\\d+)"'
            faults.append(Fault(what, "data.group", why, fix))
    return faults
