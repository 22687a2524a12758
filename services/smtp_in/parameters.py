"""The parameters of MAIL and RCPT (RFC 5321 section 4.1.1, RFC 1870, 3461, 4954 section 5, 6152, 6531)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.smtp_in.data_reader import SmtpRefusal
from shared.mime import dsn_options

# Some old clients send no brackets, or spaces after the colon.
_PATH = re.compile(
    r"""(?P<word>FROM|TO):[ ]*
    (?: <(?P<path> (?:"(?:[^"\\]|\\.)*"|[^<>"\s])* )> | (?P<bare>[^<>"\s]+) )
    (?:[ ]+(?P<parameters>.*))?""",
    re.VERBOSE | re.IGNORECASE,
)
_SIZE = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class PathParameters:
    """The argument of MAIL or RCPT."""

    address: str  # '' for <>
    smtputf8: bool = False  # addresses and header may be UTF-8
    dsn_params: str | None = None  # RET, ENVID, NOTIFY, ORCPT in the format of shared/mime/dsn_options.py
    size: int = 0  # octets that the client announces


def parse_mail(argument: str, max_octets: int) -> PathParameters | SmtpRefusal:
    """Parse the argument of MAIL. :param max_octets: largest mail."""
    parsed = _parse("FROM", argument)
    if parsed is None:
        return SmtpRefusal(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
    address, parameters = parsed
    smtputf8, dsn_params, size = False, [], 0
    for name, value in parameters.items():
        if name == "SIZE" and _SIZE.fullmatch(value):
            size = int(value)
            if size > max_octets:
                return SmtpRefusal(552, "5.3.4", f"The mail is larger than {max_octets} octets")
        elif name == "SMTPUTF8" and not value:
            smtputf8 = True
        elif (name == "BODY" and value.upper() in ("7BIT", "8BITMIME")) or (name == "AUTH" and value):
            continue  # AUTH= names the original submitter (RFC 4954); only the login counts here
        elif name in dsn_options.OF_MAIL and (read := dsn_options.OF_MAIL[name](value)) is not None:
            dsn_params.append((name, read))
        elif name in ("SIZE", "SMTPUTF8", "BODY", "AUTH", *dsn_options.OF_MAIL):
            return _wrong_value(name)
        else:
            return SmtpRefusal(555, "5.5.4", "Unknown parameter of MAIL")
    return PathParameters(address, smtputf8, dsn_options.format_parameters(dsn_params), size)


def parse_rcpt(argument: str) -> PathParameters | SmtpRefusal:
    """Parse the argument of RCPT."""
    parsed = _parse("TO", argument)
    if parsed is None or not parsed[0]:
        return SmtpRefusal(501, "5.5.4", "Syntax: RCPT TO:<address>")
    address, parameters = parsed
    dsn_params = []
    for name, value in parameters.items():
        if name not in dsn_options.OF_RECIPIENT:
            return SmtpRefusal(555, "5.5.4", "Unknown parameter of RCPT")
        read = dsn_options.OF_RECIPIENT[name](value)
        if read is None:
            return _wrong_value(name)
        dsn_params.append((name, read))
    return PathParameters(address, dsn_params=dsn_options.format_parameters(dsn_params))


def _wrong_value(name: str) -> SmtpRefusal:
    return SmtpRefusal(501, "5.5.4", f"Wrong value of the parameter {name}")


def _parse(word: str, argument: str) -> tuple[str, Mapping[str, str]] | None:
    """Address and parameters by upper-case name; None on a syntax error or a repeated parameter."""
    match = _PATH.fullmatch(argument.strip())
    if match is None or match["word"].upper() != word:
        return None
    parts = [parameter.partition("=") for parameter in (match["parameters"] or "").split()]
    parameters = {name.upper(): value for name, _, value in parts}
    return (match["path"] or match["bare"] or "", parameters) if len(parameters) == len(parts) else None
