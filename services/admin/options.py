"""Options that every command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path | None, typer.Option("--data", help="The data folder of the system.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
