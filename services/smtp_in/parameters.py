"""The parameters of MAIL and RCPT (RFC 5321 section 4.1.1, RFC 1870, 3461, 4954 section 5, 6152, 6531)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.smtp_in.data_reader import SmtpRefusal
from shared.mime import dsn_options

# The brackets may be missing and blanks stand behind the colon: some old clients send that.
_PATH = re.compile(
    r"""(?P<word>FROM|TO):[ ]*
    (?: <(?P<path> (?:"(?:[^"\\]|\\.)*"|[^<>"\s])* )> | (?P<bare>[^<>"\s]+) )
    (?:[ ]+(?P<parameters>.*))?""",
    re.VERBOSE | re.IGNORECASE,
)
_SIZE = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class PathParameters:
    """What MAIL or RCPT names. address: '' for ``<>``. smtputf8: the client may send addresses and header in UTF-8.

    dsn_params: what is to be told about the delivery (shared/mime/dsn_options.py). size: octets that the client
    announces.
    """

    address: str
    smtputf8: bool = False
    dsn_params: str | None = None
    size: int = 0


def parse_mail(argument: str, max_octets: int) -> PathParameters | SmtpRefusal:
    """What follows MAIL. :param most: octets that a mail may have."""
    found = _parse("FROM", argument)
    if found is None:
        return SmtpRefusal(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
    address, parameters = found
    smtputf8, dsn_params, size = False, [], 0
    for name, value in parameters.items():
        if name == "SIZE" and _SIZE.fullmatch(value):
            size = int(value)
            if size > max_octets:
                return SmtpRefusal(552, "5.3.4", f"The mail is larger than {max_octets} octets")
        elif name == "SMTPUTF8" and not value:
            smtputf8 = True
        elif (name == "BODY" and value.upper() in ("7BIT", "8BITMIME")) or (name == "AUTH" and value):
            continue  # AUTH= says who submitted it to the client (RFC 4954): here the login counts
        elif name in dsn_options.OF_MAIL and (read := dsn_options.OF_MAIL[name](value)) is not None:
            dsn_params.append((name, read))
        elif name in ("SIZE", "SMTPUTF8", "BODY", "AUTH", *dsn_options.OF_MAIL):
            return _wrong_value(name)
        else:
            return SmtpRefusal(555, "5.5.4", "Unknown parameter of MAIL")
    return PathParameters(address, smtputf8, dsn_options.format_parameters(dsn_params), size)


def parse_rcpt(argument: str) -> PathParameters | SmtpRefusal:
    """What follows RCPT."""
    found = _parse("TO", argument)
    if found is None or not found[0]:
        return SmtpRefusal(501, "5.5.4", "Syntax: RCPT TO:<address>")
    dsn_params = []
    for name, value in found[1].items():
        if name not in dsn_options.OF_RECIPIENT:
            return SmtpRefusal(555, "5.5.4", "Unknown parameter of RCPT")
        read = dsn_options.OF_RECIPIENT[name](value)
        if read is None:
            return _wrong_value(name)
        dsn_params.append((name, read))
    return PathParameters(found[0], dsn_params=dsn_options.format_parameters(dsn_params))


def _wrong_value(name: str) -> SmtpRefusal:
    return SmtpRefusal(501, "5.5.4", f"Wrong value of the parameter {name}")


def _parse(word: str, argument: str) -> tuple[str, Mapping[str, str]] | None:
    """Address and parameters by upper-case name; None if it is neither, or a parameter stands there twice."""
    match = _PATH.fullmatch(argument.strip())
    if match is None or match["word"].upper() != word:
        return None
    parts = [parameter.partition("=") for parameter in (match["parameters"] or "").split()]
    parameters = {name.upper(): value for name, _, value in parts}
    return (match["path"] or match["bare"] or "", parameters) if len(parameters) == len(parts) else None
