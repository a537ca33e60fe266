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


def publish(
    name: str, title: str, rows: list[dict[str, Any]], about: dict[str, Any]
) -> None:
    """Print a Markdown table and write ``results/NAME.json``."""
    keys = list(rows[0])
    print(f"\n### {title}\n")
    print("| " + " | ".join(keys) + " |")
    print("|" + "---|" * len(keys))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(key, "")) for key in keys) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    print(
        f"\n{about['device']}, {about['cores']} cores, Python {about['python']}, "
        f"{versions}; {about['date']}; `{about['command']}`"
    )
    RESULTS.mkdir(exist_ok=True)
    document = {"title": title, "setting": about, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
