"""What every benchmark shares: where it ran, its table, its JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def setting(*packages: str) -> dict[str, Any]:
    """Machine, versions and date, to stand beside every figure."""
    import torch

    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", *packages)},
        "date": time.strftime("%Y-%m-%d"),
        "command": "python " + " ".join(sys.argv),
    }


def peak_memory() -> int:
    """Most memory that this process had, in bytes (Linux).

    Not ``resource.getrusage``: what it gives begins with the parent's peak.
    """
    status = Path("/proc/self/status").read_text()
    line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def publish(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    about: dict[str, Any],
    *,
    goal: str = "",
    remark: str = "",
) -> None:
    """Print a Markdown table and write ``results/NAME.json``.

    Args:
        name: Of the file.
        title: What was measured on what.
        rows: Cells by column.
        about: What :func:`setting` gave.
        goal: What was to be reached.
        remark: What a reader must know to judge the figures.
    """
    document = {
        "title": title,
        "goal": goal,
        "remark": remark,
        "setting": about,
        "rows": rows,
    }
    print("\n" + markdown(document))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def markdown(document: dict[str, Any], level: int = 3) -> str:
    """A result as a section: title, goal, table, remark, and where it was measured."""
    rows, about = document["rows"], document["setting"]
    keys = list(rows[0])
    table = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [_cell(row.get(key, "")) for key in keys]
        table.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    where = (
        f"{about['device']}, {about['cores']} cores, {about['threads']} threads, "
        f"Python {about['python']}, {versions}; {about['date']}; `{about['command']}`"
    )
    goal = f"Goal: {document['goal']}." if document.get("goal") else ""
    parts = [f"{'#' * level} {document['title']}", goal, "\n".join(table)]
    parts += [document.get("remark", ""), where]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
