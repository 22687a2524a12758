"""Splits a SQL file into its statements. Pure."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""--[^\n]*                      # a comment
      | /\*.*?\*/                     # a comment, not nested
      | '(?:[^']|'')*'                # a string
      | "(?:[^"]|"")*"                # a quoted name
      | (?P<tag>\$\w*\$).*?(?P=tag)   # a string between dollar signs: the body of a function
      | ;
      | [^-/'"$;]+ | .""",
    re.VERBOSE | re.DOTALL,
)


def split(sql: str) -> list[str]:
    """Return the statements without comments, each with single spaces outside of strings and without its semicolon."""
    statements, parts = [], [""]
    for token in _TOKEN.finditer(sql):
        text = token[0]
        if text == ";":
            statements.append("".join(parts).strip())
            parts = [""]
        elif text.startswith(("--", "/*")):
            parts.append(" ")
        elif text[0] in "'\"" or token["tag"]:
            parts.append(text)
        else:
            parts.append(re.sub(r"\s+", " ", text))
    statements.append("".join(parts).strip())
    return [statement for statement in statements if statement]
