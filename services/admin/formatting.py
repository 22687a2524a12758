"""How times look to people, in the command line and in the console."""

from __future__ import annotations


def moment(at: str | None) -> str:
    """A time in ISO 8601 as people read it, to the second; still UTC."""
    return (at or "").partition(".")[0].replace("T", " ")


def ago(seconds: float) -> str:
    """A time span in words that are short: 5 s, 3 min, 2 h, 4 d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
