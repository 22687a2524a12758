"""The responses that prove a password or a token to a provider's POP3 or IMAP server (RFC 4422). Pure."""

from __future__ import annotations

import hmac


def plain_response(login: str, password: str) -> bytes:
    """Return the response to the empty challenge of PLAIN (RFC 4616)."""
    return b"\0" + login.encode() + b"\0" + password.encode()


def cram_md5_response(login: str, password: str, challenge: bytes) -> bytes:
    """Return the response to a challenge of CRAM-MD5 (RFC 2195)."""
    return login.encode() + b" " + hmac.new(password.encode(), challenge, "md5").hexdigest().encode()


def oauthbearer_response(login: str, access_token: str, host: str, port: int) -> bytes:
    """Return the response to the empty challenge of OAUTHBEARER (RFC 7628 section 3.1)."""
    name = login.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 section 4: saslname
    return f"n,a={name},\1host={host}\1port={port}\1auth=Bearer {access_token}\1\1".encode()
