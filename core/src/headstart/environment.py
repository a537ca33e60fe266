"""What a run must write down so that somebody else can repeat it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headstart.version import __version__

if TYPE_CHECKING:
    from headstart.assembly import Assembly
    from headstart.plugins import Registry
    from headstart.recipe import Recipe


def describe_environment(
    recipe: Recipe, assembly: Assembly, registry: Registry
) -> dict[str, Any]:
    """Versions, device, seed, revision, and the hashes of weights and data."""
    weights = assembly.weights
    device = assembly.execution.device
    return {
        "headstart": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": package_versions(registry),
        "platform": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else device.type,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if assembly.execution.bf16 else "fp32",
        "seed": recipe.train.seed,
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "git": git_revision(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "weights": {
            "reference": weights.reference,
            "sha256": weights.sha256,
            "revision": weights.revision,
            "licence": weights.licence or recipe.backbone_spec.licence,
        },
        "data": {"fingerprint": assembly.data.fingerprint()},
    }


def package_versions(registry: Registry) -> dict[str, str]:
    """Installed versions of the core, the loaded plugins, and what they require."""
    names = {"headstart"} | {p.distribution for p in registry.plugins if p.distribution}
    versions: dict[str, str] = {}
    for name in sorted(names):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = distribution.version
        for line in distribution.requires or []:
            needed = canonicalize_name(Requirement(line).name)
            try:
                versions[needed] = metadata.version(needed)
            except metadata.PackageNotFoundError:
                continue
    return dict(sorted(versions.items()))


def git_revision() -> str:
    """Revision of the working folder, with ``+`` when it has changes; else empty."""
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def used_memory_bytes(device: torch.device) -> int:
    """The memory that this process has now, as :func:`peak_memory_bytes` counts it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory_bytes(device)
    return pages * resource.getpagesize()


def free_memory_bytes(device: torch.device) -> int | None:
    """The memory that this process can have beside what it has; unknown: ``None``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )
        return free + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = dict(line.split(":") for line in lines)
        machine = int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = _group_memory_bytes()
    return machine if group is None else min(machine, group)


def _group_memory_bytes() -> int | None:
    """What the control group (a container's, a batch system's) leaves, if it limits."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        files = int(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, KeyError, ValueError):
        # There is no group, or its limit is "max".
        return None
    # Pages of files that were read are given back when memory is short.
    return max(limit - used + files, 0)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the device if it is a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
