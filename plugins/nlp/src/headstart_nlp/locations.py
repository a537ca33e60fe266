"""Where data is: files and folders as the user named them, and assets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headstart.settings import DataSettings

if TYPE_CHECKING:
    from headstart.assets import Asset

ASSET = "asset:"
PATHS = ("path", "validation_path", "test_path", "general")
AnySettings = TypeVar("AnySettings", bound=DataSettings)


def completed(settings: AnySettings) -> AnySettings:
    """The settings with what an asset's ``[NAME.read]`` says about its table.

    What the recipe says itself goes before. Relative paths become absolute, so that a
    run folder's recipe works from everywhere.
    """
    given = settings.model_dump(include=settings.model_fields_set)
    for key in PATHS:
        if given.get(key) and not given[key].startswith(ASSET):
            given[key] = str(Path(given[key]).expanduser().absolute())
    reading = reading_of(given.get("path", ""), type(settings))
    return settings.model_validate({**reading, **given})


def reading_of(path: str, kind: type[DataSettings]) -> dict[str, Any]:
    """How an asset says that it is read, as far as these settings know the keys."""
    if not path.startswith(ASSET):
        return {}
    read = _asset(path).read
    return {key: value for key, value in read.items() if key in kind.model_fields}


def file_of(path: str) -> str:
    """A file on disk; an asset is fetched."""
    if not path.startswith(ASSET):
        return shown(path)
    from headstart.assets import fetch

    asset = _asset(path)
    return str(fetch(asset) / asset.read.get("file", asset.files[0].path))


def name_of(path: str) -> str:
    """What to call it in a report."""
    return path.removeprefix(ASSET) if path.startswith(ASSET) else Path(path).name


def shown(path: str) -> str:
    """A path as people in the present folder write it."""
    here = Path.cwd()
    inside = path and Path(path).is_relative_to(here)
    return str(Path(path).relative_to(here)) if inside else path


def _asset(path: str) -> Asset:
    from headstart.assets import find_asset

    return find_asset(path.removeprefix(ASSET), ("headstart_nlp",))
