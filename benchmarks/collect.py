"""Put every result together: ``docs/benchmarks.md`` from ``results/*.json``."""

from __future__ import annotations

import json
from pathlib import Path

from common import RESULTS, markdown

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

What was measured, beside what, on which device, with which versions, and the command
that measures it again. `make bench` runs them all, `make bench-docs` writes this page
from `benchmarks/results/`. How peers were kept equal stands in
[benchmarks/README.md](../benchmarks/README.md). A figure holds for its device alone.
"""


def main() -> None:
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        raise SystemExit(f"{RESULTS} holds no result: run `make bench` first")
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    sections = [markdown(document, level=2) for document in documents]
    PAGE.write_text("\n".join([HEAD, *sections]), encoding="utf-8")
    print(f"{PAGE}: {len(files)} results")


if __name__ == "__main__":
    main()
