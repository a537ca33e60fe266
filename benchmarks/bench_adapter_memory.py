"""Peak memory of fine-tuning SmolLM2-135M: adapters beside the whole model.

Each run is a process of its own, ``nlp/generate`` cut short: memory is the same in
every step. What was estimated before the first step stands beside what was used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from common import publish, setting

KINDS = {
    "adapters (LoRA, rank 8)": [],
    "adapters, gradient checkpointing": ["train.gradient_checkpointing=true"],
    "the whole model": ["strategy.name=global"],
    "the whole model, gradient checkpointing": [
        "strategy.name=global",
        "train.gradient_checkpointing=true",
    ],
}


def measured(steps: int, overrides: list[str]) -> dict[str, object]:
    """What a run's summary says about memory and parameters."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "headstart", "run", "nlp/generate", "--json"]
        command += ["--folder", f"{folder}/run", f"train.max_steps={steps}"]
        command += ["train.evaluate_at_start=false", "data.rows=200"]
        command += ["data.test_size=8", "data.validation_size=8", "data.prompts=0"]
        command += ["data.general=", "report.baselines=false", *overrides]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)
    return {
        "trains": f"{summary['parameters']['trainable'] / 1e6:.1f} M parameters",
        "peak, GB": summary["peak_memory_bytes"] / 1e9,
        "estimated, GB": summary["memory"]["estimated_bytes"] / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    rows = [
        {"run": name, **measured(arguments.steps, overrides)}
        for name, overrides in KINDS.items()
    ]
    for row in rows:
        row["of the whole model's"] = float(row["peak, GB"]) / float(
            rows[2]["peak, GB"]
        )
    title = "Peak memory of nlp/generate, rows of 256 tokens, two at a time"
    remark = (
        "Of each peak about 1.3 GB is Python, its libraries and the memory-mapped file "
        "of the weights."
    )
    about = setting("headstart", "transformers", "peft")
    goal = "adapters below the whole model"
    publish("adapter_memory", title, rows, about, goal=goal, remark=remark)


if __name__ == "__main__":
    main()
