"""Options that all commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


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


def group(help_: str, callback: Callable[..., None] = _start, **options: Any) -> typer.Typer:
    """Create a command with subcommands.

    :param callback: accepts the options before the subcommand. :param options: of typer.Typer.
    """
    return typer.Typer(
        help=help_,
        no_args_is_help=True,
        callback=callback,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"]},
        **options,
    )
