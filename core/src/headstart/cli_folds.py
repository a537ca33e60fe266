"""The command ``headstart cross-validate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli_catalogue import json_option
from headstart.command_group import overrides_argument, quiet_option
from headstart.listing import print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.callbacks import Callback


@click.command("cross-validate", short_help="Train and test on every fold of the data.")
@click.argument("recipe")
@overrides_argument
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the runs go; one that was stopped goes on.",
)
@quiet_option
@json_option
def cross_validate(
    recipe: str,
    overrides: tuple[str, ...],
    folder: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train as RECIPE says once for each fold of its data (data.folds=5), test on
    that fold, and show mean and spread over the folds.
    """
    from headstart import cross_validation
    from headstart.console import RunConsole, Transfers
    from headstart.recipe import parse_overrides

    silent = quiet or as_json
    transfers = None if silent else Transfers()
    tellers: list[RunConsole] = []

    def watchers(fold: int) -> Sequence[Callback]:
        if silent:
            return ()
        tellers.append(RunConsole())
        tellers[-1].screen.say(f"\nfold {fold}")
        return tellers[-1:]

    try:
        done = cross_validation.cross_validate(
            recipe,
            parse_overrides(overrides),
            folder=folder,
            callbacks=watchers,
            progress=transfers,
        )
    finally:
        if transfers:
            transfers.close()
        for teller in tellers:
            teller.close()
    summary = done.summary()
    if as_json:
        print_json({"folder": str(done.folder), **summary})
    else:
        _show(summary, done.folder)
    if not done.complete:
        sys.exit(130)


def _show(summary: Mapping[str, Any], folder: Path) -> None:
    from headstart.console import Screen, say_table
    from headstart.report.verdict import number

    screen, results = Screen(), summary["results"]
    if not results:
        screen.say("interrupted: no fold is finished")
    else:
        own = results["this run"]
        goals = {"loss": "min", **summary["goals"]}
        arrows = {"max": " ↑", "min": " ↓"}
        names = {name: name + arrows.get(goals.get(name, ""), "") for name in own}
        rows = [
            {"metric": shown}
            | {
                who: _spread(metrics[name]) if name in metrics else "–"
                for who, metrics in results.items()
            }
            | {
                f"fold {fold}": number(value)
                for fold, value in enumerate(own[name]["folds"])
            }
            for name, shown in names.items()
        ]
        screen.say()
        say_table(screen, rows)
        count = len(own["loss"]["folds"])
        screen.say()
        screen.say(
            f"Mean ± standard deviation over {count} of {summary['folds']} folds. As "
            "folds share training data, it is that of single folds, not of the mean."
        )
    screen.say_rows([("runs", str(folder))])


def _spread(metric: Mapping[str, Any]) -> str:
    from headstart.report.verdict import number

    if metric["spread"] is None:
        return number(metric["mean"])
    return f"{number(metric['mean'])} ± {number(metric['spread'])}"
