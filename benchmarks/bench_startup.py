"""How long the command line takes to answer, beside an empty Python."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import publish, setting

HEADSTART = str(Path(sys.executable).with_name("headstart"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "headstart --help": [HEADSTART, "--help"],
    "headstart list": [HEADSTART, "list"],
    "headstart plugins": [HEADSTART, "plugins"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(15):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["python -c pass"])
    rows = [
        {
            "command": name,
            "median s": statistics.median(values),
            "times python": statistics.median(values) / base,
        }
        for name, values in seconds.items()
    ]
    publish("startup", "Start of the command line", rows, setting("headstart", "click"))


if __name__ == "__main__":
    main()
