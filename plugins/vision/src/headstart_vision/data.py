"""The plugin's data modules, each in a file of its own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "ImageClassification": "classification",
    "MaskData": "masks",
    "ObjectData": "objects",
    "SceneData": "scenes",
}
__all__ = tuple(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a data module on use: one task's libraries are not another's."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"headstart_vision.{_MODULES[name]}"), name)
