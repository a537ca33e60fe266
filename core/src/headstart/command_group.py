"""The group of commands: nearest names, errors in words, exit codes."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from headstart.errors import HeadstartError, nearest
from headstart.listing import wrapped

if TYPE_CHECKING:
    from types import TracebackType

    from headstart.plugins import PluginInfo


overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but the result.")


class Commands(click.Group):
    """Offers the nearest commands, and turns every error into words and a code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args[0] not in names:
            close = difflib.get_close_matches(args[0].casefold(), names, n=3)
            hint = " or ".join(map(repr, close))
            raise click.UsageError(
                f"There is no command {args[0]!r}; "
                + (f"did you mean {hint}?" if close else nearest(args[0], names)),
                ctx,
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HeadstartError as error:
            _say_error(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # Whoever read the output has seen enough. Python flushes at its exit,
            # which would fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            sys.exit(_unexpected(error))


def _say_error(text: str) -> None:
    if sys.stderr.isatty():
        text = wrapped(f"error: {text}", shutil.get_terminal_size().columns)
        text = text.removeprefix("error: ")
    click.secho("error: ", fg="red", err=True, nl=False)
    click.echo(text, err=True)


def _unexpected(error: Exception) -> int:
    """The traceback, and to whom it should go; returns the exit code."""
    import traceback

    traceback.print_exception(error)
    plugin = _culprit(error.__traceback__)
    owner = f"the plugin {plugin.name!r}" if plugin else "headstart"
    to = (plugin.distribution or plugin.package) if plugin else "headstart"
    _say_error(
        f"this is a fault of {owner}, not of yours\n"
        f"  why: {type(error).__name__}: {error}\n"
        f"  fix: report it to the authors of {to}, with the command, everything "
        "printed above and what `headstart doctor` prints"
    )
    return 4 if plugin else 1


def _culprit(trace: TracebackType | None) -> PluginInfo | None:
    """The plugin whose code was the last of headstart's and the plugins' to run."""
    from headstart.plugins import load_plugins

    modules = []
    while trace:
        modules.append(f"{trace.tb_frame.f_globals.get('__name__', '')}.")
        trace = trace.tb_next
    plugins = [info for info in load_plugins().plugins if info.package]
    for module in reversed(modules):
        for info in plugins:
            if module.startswith(f"{info.package}."):
                return info
        if module.startswith("headstart."):
            return None
    return None
