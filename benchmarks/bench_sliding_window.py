"""Windows that slide over a whole volume: ours beside MONAI's called directly.

The same network (deepbrain's U-Net with its weights and a new layer of two classes),
the same volume, window, overlap and Gaussian weights; one process, rounds in turn, the
first one of a round by turns. The peak of memory is that of a process of its own that
makes the network and the volume and slides once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from common import peak_memory, publish, setting
from monai.inferers import sliding_window_inference

from headstart.assembly import build_backbone, build_head
from headstart.execution import choose_execution
from headstart.model import Model
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.weights.sources import SourceContext, resolve_weights
from headstart.weights.transfer import load_weights
from headstart_medical.sliding import Windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SIDE, OVERLAP = 96, 0.25
LABELS = ("background", "lesion")
TASK = {
    "kind": "volume-segmentation",
    "labels": LABELS,
    "channels": ["T1"],
    "spacing": [1.0, 1.0, 1.0],
    "patch": [SIDE] * 3,
    "modality": "mri",
}


def make_network() -> Callable[[Tensor], Tensor]:
    """Windows to logits, by the recipe's backbone and head."""
    registry = load_plugins()
    recipe = load_recipe("medical/tumour-segmentation", {}, registry=registry)
    weights = resolve_weights(recipe.backbone.weights, SourceContext(registry))
    torch.manual_seed(0)
    backbone = build_backbone(recipe, weights.folder, TASK)
    head = build_head(recipe, backbone, TASK)
    load_weights(backbone, weights, head=head, labels=LABELS)
    model = choose_execution(recipe.train).place(Model(backbone, head)).eval()

    def network(windows: Tensor) -> Tensor:
        logits: Tensor = model({"image": windows})["logits"]
        return logits

    return network


def make_volume(shape: list[int]) -> Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))


def ours(network: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
    windows = Windows((SIDE, SIDE, SIDE), overlap=OVERLAP)
    return windows(network, volume, len(LABELS))


def monai(network: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
    found = sliding_window_inference(
        volume[None], (SIDE,) * 3, 1, network, overlap=OVERLAP, mode="gaussian"
    )
    assert isinstance(found, torch.Tensor)
    return found[0]


BOTH = {"ours": ours, "MONAI": monai}


def own_memory(name: str, shape: list[int]) -> int:
    """Peak in bytes of a process that makes a network and slides once."""
    command = [sys.executable, __file__, "--memory-of", name]
    command += ["--shape", *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=3, default=[256, 256, 150])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--memory-of", choices=BOTH, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    network, volume = make_network(), make_volume(arguments.shape)
    if arguments.memory_of:
        with torch.inference_mode():
            BOTH[arguments.memory_of](network, volume)
        print(peak_memory())
        return
    seconds: dict[str, list[float]] = {name: [] for name in BOTH}
    busy: dict[str, list[float]] = {name: [] for name in BOTH}
    found: dict[str, Tensor] = {}
    for turn in range(arguments.rounds):
        for name in sorted(BOTH, reverse=bool(turn % 2)):
            with torch.inference_mode():
                began, worked = time.perf_counter(), time.process_time()
                found[name] = BOTH[name](network, volume)
                seconds[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - worked)
    same = (found["ours"] == found["MONAI"]).all(0).float().mean().item()
    apart = float((found["ours"] - found["MONAI"]).abs().max())
    rows: list[dict[str, Any]] = []
    for name, values in seconds.items():
        # How many times as fast as MONAI's.
        ratios = [
            theirs / mine for theirs, mine in zip(seconds["MONAI"], values, strict=True)
        ]
        rows.append(
            {
                "windows": name,
                "seconds (median)": statistics.median(values),
                "CPU seconds (median)": statistics.median(busy[name]),
                "speed / MONAI's, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "peak memory, GB": own_memory(name, arguments.shape) / 1e9,
            }
        )
    shape = "x".join(map(str, arguments.shape))
    publish(
        "sliding_window",
        f"deepbrain's U-Net over a volume of {shape}, windows of {SIDE}, overlap "
        f"{OVERLAP}, Gaussian",
        rows,
        setting("headstart-medical", "monai"),
        goal="within 3 GB, at least .98 of MONAI's speed, the same voxels",
        remark=f"{same:.2%} of the voxels have identical logits; they differ by "
        f"{apart:.1e} at most. The peak is that of a whole process, interpreter and "
        "libraries included.",
    )


if __name__ == "__main__":
    main()
