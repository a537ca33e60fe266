"""What this machine has, and what is amiss with it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from headstart.assets import cache_folder
from headstart.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart.plugins import Registry

NEEDED_BYTES = 2 * 2**30
"""Free room below which weights and checkpoints soon do not fit."""


@dataclass(frozen=True)
class Examined:
    """One thing that was looked at.

    Attributes:
        ok: Whether it is as it should be.
        text: What was found, and what to do if it is not ok.
    """

    ok: bool
    text: str


def examine(registry: Registry) -> list[Examined]:
    """Look at Python, torch, device, cache, network settings and plugins."""
    return [
        Examined(True, f"headstart {__version__}, Python {platform.python_version()}"),
        *_torch(),
        _cache(),
        *_settings(),
        *_plugins(registry),
    ]


def _torch() -> Iterator[Examined]:
    try:
        import torch
    except Exception as error:
        yield Examined(False, f"torch does not import: {error}; reinstall it")
        return
    yield Examined(
        True, f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    )
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Examined(True, f"GPU {name}, {memory:.0f} GiB, {bf16}")
    else:
        yield Examined(True, "no GPU: recipes run on the CPU in fp32")
    for name in ("torchvision", "torchaudio"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        try:
            __import__(name)
        except Exception as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            yield Examined(
                False,
                f"{name} {version} does not import: {first}; it must be built for the "
                "same CUDA as torch, install the versions of constraints.txt",
            )
        else:
            yield Examined(True, f"{name} {version}")


def _cache() -> Examined:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Examined(
            False,
            f"the cache {folder} cannot be written ({error}); set HEADSTART_CACHE to a "
            "folder that can",
        )
    free = shutil.disk_usage(folder).free
    return Examined(
        free > NEEDED_BYTES, f"cache {folder}, {free / 2**30:.0f} GiB of disk are free"
    )


def _settings() -> Iterator[Examined]:
    for name in ("HEADSTART_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        if os.environ.get(name):
            yield Examined(True, f"{name} is set to {os.environ[name]}")


def _plugins(registry: Registry) -> Iterator[Examined]:
    for plugin in registry.plugins:
        ok = plugin.status == "loaded"
        cause = "" if ok else f": {plugin.cause}; see `headstart plugins -v`"
        yield Examined(
            ok, f"plugin {plugin.name} {plugin.version} {plugin.status}{cause}"
        )
    if not registry.plugins:
        yield Examined(True, f"no plugin in {sys.prefix}: pip install headstart-nlp")
