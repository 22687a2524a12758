"""Reads a YAML text (1.2, so JSON too) within limits. Pure.

Anchors and aliases are refused: a few lines of them stand for billions of values, and an accounts file needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.reader import ReaderError

from services.admin.accounts.errors import AccountProblem, AccountsError

MAX_OCTETS = 4 * 1024 * 1024
"""Longest text: octets; ten thousand local accounts have 1 MiB."""
MAX_VALUES = 220_000
"""Names and values of a text; ten thousand local accounts with every field have 200,000; each takes about 1 KB while
it is read."""
MAX_DEPTH = 20
"""Depth of lists and mappings inside each other; an accounts file has 5."""


class _LimitError(ComposerError):
    """The text is YAML, and exceeds a limit."""


class _LimitedComposer(Composer):
    """Builds the tree of a text within the limits."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Build the next node. :raises _LimitError: it has an anchor, is an alias, or is one too many."""
        event = self.parser.peek_event()
        self._values += 1
        if isinstance(event, AliasEvent) or event.anchor is not None:
            sign = "*" if isinstance(event, AliasEvent) else "&"
            raise _LimitError(
                None, None, f"anchors and aliases are not allowed: {sign}{event.anchor}; write it out", event.start_mark
            )
        if self._values > MAX_VALUES:
            raise _LimitError(None, None, f"at most {MAX_VALUES} names and values are allowed", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise _LimitError(None, None, f"lists and mappings may be {MAX_DEPTH} deep at most", event.start_mark)
        return super().compose_node(parent, index)


def load_yaml(text: str, where: str) -> Any:
    """Return the data of a text.

    :param where: the start of the error line. :raises AccountsError: it is not YAML, or exceeds a limit; with its line.
    """
    if len(text) > MAX_OCTETS or len(text.encode("utf-8", "replace")) > MAX_OCTETS:
        raise AccountsError([f"{where}: is longer than {MAX_OCTETS} octets"])
    try:
        return _joined(_reader().load(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        kind = "" if isinstance(error, _LimitError) else "not YAML: "
        words = str(error.problem or error.context)
        if isinstance(error, DuplicateKeyError):
            words = words.partition(" with value ")[0]  # the values may be passwords
        raise AccountsError([f"{where}:{place}: {kind}{words}"]) from error
    except ReaderError as error:
        raise AccountsError([f"{where}: not YAML: {str(error).splitlines()[0]}"]) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise AccountsError([f"{where}: not YAML: {error}"]) from error


def find_places(text: str, problems: Sequence[AccountProblem]) -> list[str]:
    """Return "line 3, column 5" for each problem: of the wrong name or value, or of what should contain it.

    :param text: has been loaded by ``load_yaml``. It is read again, since few texts have problems.
    """
    root = _reader().compose(text)
    return [_place(root, problem) for problem in problems]


def _place(node: Node | None, problem: AccountProblem) -> str:
    mark = node.start_mark if node is not None else None
    for part in problem.path:
        name: Node | None = None
        if isinstance(node, MappingNode):
            name, node = next(((key, value) for key, value in node.value if key.value == part), (None, None))
        elif isinstance(node, SequenceNode) and isinstance(part, int):
            node = node.value[part] if part < len(node.value) else None
        else:
            node = None
        if node is None:
            break
        mark = name.start_mark if problem.of_name and name is not None else node.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _reader() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _LimitedComposer
    return yaml


def _joined(data: Any) -> Any:
    """Join surrogates: JSON writes a letter beyond the BMP as two escapes, and the YAML reader keeps both."""
    if isinstance(data, str):
        try:
            return data.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            return data  # half a pair: the check refuses it
    if isinstance(data, dict):
        return {_joined(key): _joined(value) for key, value in data.items()}
    return [_joined(value) for value in data] if isinstance(data, list) else data
