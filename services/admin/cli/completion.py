"""``completion``: scripts that complete commands and options in a shell; typer computes the completions.

The scripts run the program as it was typed, so ``./mailgroup`` in a checkout needs no ``mailgroup`` on the PATH.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated

import typer
from typer.completion import get_completion_inspect_parameters

from services.admin.cli.options import Data

VARIABLE = "_MAILGROUP_COMPLETE"
"""The environment variable of a completion request; typer derives the name from the program's name."""


class Shell(StrEnum):
    """The supported shells."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_SCRIPTS = {
    Shell.BASH: f"""\
_mailgroup_completion() {{
  local IFS=$'\\n' program=${{1//\\\\/}}
  [[ $program != '~/'* ]] || program=$HOME/${{program:2}}
  local words=(mailgroup "${{COMP_WORDS[@]:1}}")
  COMPREPLY=($(COMP_WORDS="${{words[*]}}" COMP_CWORD=$COMP_CWORD {VARIABLE}=complete_bash "$program" 2>/dev/null))
}}
complete -o default -F _mailgroup_completion mailgroup
""",
    Shell.ZSH: f"""\
#compdef mailgroup
_mailgroup_completion() {{
  local program=${{(Q)words[1]}}
  [[ $program != '~/'* ]] || program=$HOME/${{program#'~/'}}
  eval "$(_TYPER_COMPLETE_ARGS="${{words[1,$CURRENT]}}" {VARIABLE}=complete_zsh "$program" 2>/dev/null)"
}}
compdef _mailgroup_completion mailgroup
""",
    Shell.FISH: f"""\
function _mailgroup_completion
  set -l program (string replace -r '^~/' "$HOME/" -- (commandline -opc)[1])
  set -l asked {VARIABLE}=complete_fish _TYPER_COMPLETE_FISH_ACTION=$argv[1]
  env $asked _TYPER_COMPLETE_ARGS=(commandline -cp) $program 2>/dev/null
end
complete --command mailgroup --no-files --arguments '(_mailgroup_completion get-args)' \\
  --condition '_mailgroup_completion is-args'
""",
}


def completion(
    shell: Annotated[Shell | None, typer.Argument(help="Default: the shell that SHELL names, else bash.")] = None,
    data: Data = None,
) -> None:
    """Print the completion script of a shell, which completes commands and options on Tab.

    Example: source <(mailgroup completion bash)
    """
    print(_SCRIPTS[shell or _login_shell()], end="")


def prepare() -> None:
    """Register the shells with typer, which would do it itself only if it also installed its own scripts."""
    if VARIABLE in os.environ:
        get_completion_inspect_parameters()


def _login_shell() -> Shell:
    name = PurePath(os.environ.get("SHELL", "")).name
    return Shell(name) if name in list(Shell) else Shell.BASH
