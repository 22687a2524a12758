"""The rules of the field ``oauth``: which fields a way to get access tokens needs, and which it does not take. Pure.

Each field is checked with those before it in ``OAuthFields``; one of them that is wrong itself decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.provider.client_keys import read_key

MAX_KEY_OCTETS = 65_536
"""Limit of a key file: octets; one with a certificate has a few thousand."""
_TENANT = re.compile(r"[A-Za-z0-9]+([.-][A-Za-z0-9]+)*")
_OF_NO_ORGANISATION = ("common", "organizations", "consumers")
_WITHOUT = {
    ("google", "client_credentials"): "jwt_bearer for a service account",
    ("microsoft", "jwt_bearer"): "client_credentials for an application",
}
"""Grants that an issuer does not have, and the one that it has for the same purpose."""


def check_field(name: str, value: Any, earlier: Mapping[str, Any]) -> Any:
    """Check a field against the earlier ones, and return its value.

    :param earlier: the valid values of the fields before it. :raises ValueError: what is wrong, and what is allowed.
    """
    if "same_as" not in earlier:
        return value
    if earlier["same_as"] is not None:
        if value is not None:
            raise ValueError(f"is not allowed beside same_as: the access tokens are those of {earlier['same_as']}")
        return value
    grant, issuer = earlier.get("grant"), earlier.get("issuer")
    match name:
        case "issuer" | "client_id" if value is None:
            raise ValueError("is missing")
        case "issuer" if isinstance(value, str) and (other := _WITHOUT.get((value, str(grant)))):
            raise ValueError(f"has no grant {grant}; it has {other}, and authorization by a person")
        case "tenant":
            _check_tenant(value, grant, issuer, "issuer" in earlier)
        case _ if value is not None:
            return _check_secret(name, value, earlier)
    return value


def _check_tenant(value: str | None, grant: str | None, issuer: Any, issuer_is_valid: bool) -> None:
    if issuer == "microsoft" and grant == "client_credentials":
        if value is None:
            raise ValueError("is missing: the name or id of your organisation at Microsoft")
        if value.casefold() in _OF_NO_ORGANISATION:
            raise ValueError("names no organisation; client_credentials needs the name or id of yours at Microsoft")
    if value is not None and issuer != "microsoft" and issuer_is_valid:
        raise ValueError("is for the issuer microsoft only")


def _check_secret(name: str, value: Any, earlier: Mapping[str, Any]) -> Any:
    """Check the secret or key of the client. :return: a key in its PEM form."""
    grant = earlier.get("grant")
    if name == "client_secret" and grant == "jwt_bearer":
        raise ValueError("is not used by jwt_bearer, which signs with client_key")
    if name in ("client_key", "client_key_file"):
        if earlier.get("issuer") == "google" and grant == "authorization":
            raise ValueError("is for the grant jwt_bearer; google takes a client_secret with a person's authorization")
        given = [each for each in ("client_secret", "client_key") if earlier.get(each) is not None]
        if given:
            raise ValueError(f"is not allowed beside {given[0]}; one of them proves who the application is")
    return check_key(value, earlier.get("client_id")) if name == "client_key" else value


def check_key(text: str, client_id: str | None) -> str:
    """Return a key in its PEM form. :raises ValueError: it is none, or that of another service account."""
    read = read_key(text)
    if read.owner and client_id is not None and read.owner != client_id:
        raise ValueError(f"is the key of {read.owner}, which has to be the client_id")
    return read.pem


def check_tenant_name(value: str) -> str:
    """Return the name or id of an organisation at Microsoft. It becomes a part of the endpoints' URLs."""
    if not _TENANT.fullmatch(value) or len(value) > 253:
        raise ValueError("is not the name or id of an organisation: letters, digits, dots and hyphens")
    return value


def read_key_file(folder: Path | None, name: str, client_id: str | None) -> str:
    """Return the key of a file, in its PEM form. :param folder: that the name is relative to; None: no file is allowed.

    :raises ValueError: why that is not possible.
    """
    if folder is None:
        raise ValueError("is for a file beside the accounts file; give the key itself, as client_key")
    try:
        with (folder / name).open("rb") as file:
            text = file.read(MAX_KEY_OCTETS).decode()
    except UnicodeDecodeError:
        raise ValueError("is not a text file") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return check_key(text, client_id)
