"""Options that all commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


def _inherit(context: typer.Context, value: Path | None) -> Path | None:
    """Accept ``--data`` before the command, too."""
    place = context.parent
    while value is None and place is not None:
        value, place = place.params.get("data"), place.parent
    return value


Data = Annotated[
    Path | None, typer.Option("--data", help="Data folder of the system.", metavar="DIR", callback=_inherit)
]
Address = Annotated[str, typer.Argument(help="Address of the account.", metavar="ADDRESS")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _start(data: Data = None) -> None:
    """Accept the option before the command."""


class _Group(TyperGroup):
    """A command with subcommands, whose help lists whole sentences: long ones are folded, not cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the name and the first sentence of each subcommand."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [
            (name, _first_sentence(command.help or ""))
            for name, command in commands.items()
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    first, stop, _ = paragraph.partition(". ")
    return first + stop.rstrip()


def group(help_: str, callback: Callable[..., None] = _start, **options: Any) -> typer.Typer:
    """Create a command with subcommands.

    :param callback: accepts the options before the subcommand. :param options: of typer.Typer.
    """
    return typer.Typer(
        cls=_Group,
        help=help_,
        no_args_is_help=True,
        callback=callback,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"]},
        **options,
    )
