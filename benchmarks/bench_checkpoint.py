"""What a checkpoint costs beside a plain safetensors write of the same bytes.

A model of 100 M parameters with AdamW's state, about 1.2 GB. The plain write is
``save_file`` and a flush to the disk, without hashes or a manifest; rounds in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import publish, setting
from safetensors.torch import save_file

from headstart.checkpoint import read_checkpoint, write_checkpoint

Groups = dict[str, dict[str, torch.Tensor]]
WIDTH = 1024


def tensors(millions: int) -> Groups:
    """Square matrices, as in a transformer, and two moments of each."""
    generator = torch.Generator().manual_seed(0)
    model, optimizer = {}, {}
    for number in range(round(millions * 1e6 / WIDTH**2)):
        name = f"layer{number}.weight"
        model[name] = torch.randn(WIDTH, WIDTH, generator=generator)
        optimizer[f"{name}/exp_avg"] = torch.randn(WIDTH, WIDTH, generator=generator)
        optimizer[f"{name}/exp_avg_sq"] = optimizer[f"{name}/exp_avg"] ** 2
        optimizer[f"{name}/step"] = torch.tensor(1.0)
    return {"model": model, "optimizer": optimizer}


def plain(folder: Path, groups: Groups) -> float:
    """Seconds of writing the tensors and flushing them, with no way to check them."""
    folder.mkdir()
    began = time.perf_counter()
    for name, group in groups.items():
        path = folder / f"{name}.safetensors"
        save_file(group, path)
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    spent = time.perf_counter() - began
    shutil.rmtree(folder)
    return spent


def ours(folder: Path, groups: Groups) -> tuple[float, float]:
    """Seconds that training waits for a checkpoint, and seconds to check it."""
    began = time.perf_counter()
    checkpoint = write_checkpoint(folder, 1, groups, {"step": 1})
    spent = time.perf_counter() - began
    began = time.perf_counter()
    read_checkpoint(checkpoint.folder)
    checked = time.perf_counter() - began
    shutil.rmtree(folder)
    return spent, checked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    groups = tensors(arguments.millions)
    size = sum(t.nbytes for group in groups.values() for t in group.values()) / 1e9
    seconds: dict[str, list[float]] = {"plain": [], "ours": [], "check": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        for turn in range(arguments.rounds):
            # Whoever comes second may find the disk busy with the first one's blocks.
            for which in ("plain", "ours") if turn % 2 else ("ours", "plain"):
                os.sync()
                if which == "plain":
                    seconds["plain"].append(plain(root / "plain", groups))
                else:
                    spent, checked = ours(root / "ours", groups)
                    seconds["ours"].append(spent)
                    seconds["check"].append(checked)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    names = {
        "plain": "save_file and flush",
        "ours": "checkpoint (checksums, manifest, flush, rename)",
        "check": "checking it on resume",
    }
    rows = []
    for key, label in names.items():
        values = seconds[key]
        row = {"what": label, "median s": statistics.median(values)}
        row["range s"] = f"{min(values):.2f} to {max(values):.2f}"
        row["GB/s"] = size / statistics.median(values)
        row["times plain, median of rounds"] = ""
        if key == "ours":
            row["times plain, median of rounds"] = (
                f"{statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        rows.append(row)
    title = f"Checkpoint of {arguments.millions} M parameters with AdamW, {size:.2f} GB"
    publish(
        "checkpoint",
        title,
        rows,
        setting("headstart", "safetensors"),
        goal="blocks training for at most 1.2 times the plain write",
        remark="Checksums are taken on threads of their own, which "
        "other jobs on the same cores slow down. Load average of the machine at the "
        f"end: {os.getloadavg()[0]:.1f}.",
    )


if __name__ == "__main__":
    main()
