"""Parses LIST in all of its forms (RFC 3501 section 6.3.8, RFC 5258, RFC 5819, RFC 6154 section 2)."""

from __future__ import annotations

from services.imap_out.grammar.commands import Arguments, ListArguments
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.reader import ArgumentReader

STATUS_ITEMS = frozenset(("MESSAGES", "RECENT", "UIDNEXT", "UIDVALIDITY", "UNSEEN", "DELETED", "SIZE", "HIGHESTMODSEQ"))
"""Items of STATUS (RFC 9051 section 6.3.11, RFC 3501, RFC 7162)."""
MAX_PATTERNS = 50
"""Patterns of one LIST."""

_SELECTS = frozenset(("SUBSCRIBED", "REMOTE", "RECURSIVEMATCH", "SPECIAL-USE"))
_RETURNS = frozenset(("SUBSCRIBED", "CHILDREN", "SPECIAL-USE", "STATUS"))


def read_lsub(reader: ArgumentReader) -> Arguments:
    """Read the arguments of LSUB: a reference and a pattern."""
    reader.space("the reference")
    reference = reader.pattern("the reference")
    reader.space("the pattern")
    return ListArguments(reference, (reader.pattern("the pattern"),))


def read_list(reader: ArgumentReader) -> Arguments:
    """Read the arguments of LIST. :raises CommandError: an option is unknown, or they do not fit together."""
    reader.space("the reference")
    extended = reader.peek() == b"("
    selects = _read_words(reader, "the selection options", _SELECTS) if extended else frozenset()
    if selects and selects <= {"RECURSIVEMATCH", "REMOTE"} and "RECURSIVEMATCH" in selects:
        raise CommandError("RECURSIVEMATCH needs another selection option (RFC 5258 section 3.1)")
    if extended:
        reader.space("the reference")
    reference = reader.pattern("the reference")
    reader.space("the pattern")
    patterns = _read_patterns(reader)
    extended = extended or len(patterns) != 1
    returns: frozenset[str] = frozenset()
    status: tuple[str, ...] = ()
    if reader.skips_space():
        if not reader.skips_atom(b"RETURN"):
            raise CommandError("LIST takes nothing but RETURN after its pattern")
        reader.space("the return options")
        returns, status = _read_returns(reader)
        extended = True
    return ListArguments(reference, patterns, selects, returns, status, extended)


def _read_patterns(reader: ArgumentReader) -> tuple[str, ...]:
    if not reader.skips(b"("):
        return (reader.pattern("the pattern"),)
    patterns = []
    while not reader.skips(b")"):
        patterns.append(reader.pattern("a pattern"))
        reader.skips_space()
        if len(patterns) > MAX_PATTERNS:
            raise CommandError(f"LIST has more than {MAX_PATTERNS} patterns")
    if not patterns:
        raise CommandError("the patterns are missing")
    return tuple(patterns)


def _read_words(reader: ArgumentReader, what: str, known: frozenset[str]) -> frozenset[str]:
    reader.expect(b"(", what)
    words = set()
    while not reader.skips(b")"):
        words.add(reader.atom(what))
        reader.skips_space()
    if not words <= known:
        raise CommandError(f"{what}: known are {', '.join(sorted(known))}")
    return frozenset(words)


def _read_returns(reader: ArgumentReader) -> tuple[frozenset[str], tuple[str, ...]]:
    what = "the return options"
    reader.expect(b"(", what)
    returns = set()
    status: dict[str, None] = {}
    while not reader.skips(b")"):
        name = reader.atom(what)
        if name not in _RETURNS:
            raise CommandError(f"{what}: known are {', '.join(sorted(_RETURNS))}")
        returns.add(name)
        reader.skips_space()
        if name == "STATUS":
            reader.expect(b"(", "the items of STATUS")
            while not reader.skips(b")"):
                status[reader.atom("the items of STATUS")] = None
                reader.skips_space()
            reader.skips_space()
    if not status.keys() <= STATUS_ITEMS or ("STATUS" in returns and not status):
        raise CommandError(f"the items of STATUS: known are {', '.join(sorted(STATUS_ITEMS))}")
    return frozenset(returns), tuple(status)
