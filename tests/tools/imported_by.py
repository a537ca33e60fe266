"""Run `headstart ARGUMENTS` in this process and print what it imported.

The last line of the output is a JSON object: the exit code and the top-level modules.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from headstart.cli import main as headstart

    sys.argv[0] = "headstart"
    code: object = 0
    try:
        headstart()
    except SystemExit as stop:
        code = stop.code or 0
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    sys.stdout.flush()
    print("\n" + json.dumps({"code": code, "modules": modules}))


if __name__ == "__main__":
    main()
