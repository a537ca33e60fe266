"""`headstart cache`: what frozen stages gave, kept on disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from headstart.listing import print_json, print_rows

if TYPE_CHECKING:
    from headstart.prefix_files import StoredCache


@click.command(short_help="List or prune what frozen stages gave, kept on disk.")
@click.argument("action", type=click.Choice(["list", "prune"]), default="list")
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="GB",
    help="Prune down to so much, the one unused for longest first; 0 prunes all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def cache(action: str, keep: float, as_json: bool) -> None:
    """List or prune the outputs of frozen stages that runs keep and share.

    Runs make them anew when they need them. One that a run is making stays.
    """
    from headstart.prefix_files import (
        caches_root,
        prune_caches,
        size_text,
        stored_caches,
    )

    pruning = action == "prune"
    found = prune_caches(int(keep * 2**30)) if pruning else stored_caches()
    rows = [_row(each) for each in found]
    if as_json:
        print_json(rows)
        return
    total = size_text(sum(each.bytes for each in found))
    noun = "cache" if len(found) == 1 else "caches"
    if pruning:
        click.echo(f"deleted {len(found)} {noun}, {total}")
        return
    click.echo(f"{caches_root()}: {len(found)} {noun}, {total}", err=True)
    shown = [
        {
            "cache": row["name"][:8],
            "size": size_text(row["bytes"]),
            "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["used"])),
            "split": row["split"],
            "samples": str(row["samples"]),
            "views": str(row["views"]),
            "freeze point": row["freeze_point"],
        }
        for row in rows
    ]
    print_rows(shown, right=["size", "samples", "views"])


def _row(stored: StoredCache) -> dict[str, Any]:
    keys = ("split", "samples", "views", "freeze_point", "made")
    return {
        "name": stored.folder.name,
        "bytes": stored.bytes,
        "used": stored.used,
        **{key: stored.about.get(key, "damaged") for key in keys},
    }
