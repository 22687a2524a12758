"""Private keys by which an application proves itself to a token endpoint, and the JWTs that they sign (RFC 7523).

The imports are in the functions: most processes never sign anything, and PyJWT takes long to import.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from dataclasses import dataclass, field

ASSERTION_SECONDS = 300
"""Lifetime of an assertion that replaces the client secret: seconds; Microsoft wants 5 to 10 minutes at most."""
BEARER_SECONDS = 3600
"""Lifetime of an assertion that asks for an account's token: seconds; Google allows an hour at most."""
MIN_BITS = 2048
"""The least size of an RSA key: bits (RFC 7518 section 3.3)."""
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----[A-Za-z0-9+/=\s]+-----END \1-----")


@dataclass(frozen=True, slots=True)
class ReadKey:
    """A key as it was given. pem: the private key, and its certificate if it came with one. owner: '' if unknown."""

    pem: str = field(repr=False)
    owner: str  # client_email in a JSON file of Google


def read_key(text: str) -> ReadKey:
    """Read a PEM private key, with its certificate or without, or the JSON file of a Google service account.

    :raises ValueError: it is neither, or no RSA key of enough bits; the text repeats nothing of the key.
    """
    owner = ""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            found = {}
        text, owner = str(found.get("private_key", "")), str(found.get("client_email", ""))
        if not text or not owner:
            raise ValueError("is not the JSON key file of a Google service account (client_email, private_key)")
    text = text.replace("\r\n", "\n")
    if "ENCRYPTED" in text:
        raise ValueError("is protected by a password; give the key without one")
    blocks = {match[1]: match[0] for match in reversed([*_PEM.finditer(text)])}
    keys = [name for name in blocks if name.endswith("PRIVATE KEY")]
    if len(keys) != 1:
        raise ValueError("is not one private key in PEM form, or the JSON key file of a Google service account")
    certificate = blocks.get("CERTIFICATE", "")
    _check(blocks[keys[0]], certificate)
    return ReadKey("\n".join(filter(None, (blocks[keys[0]], certificate))) + "\n", owner)


def _check(key: str, certificate: str) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    try:
        loaded = load_pem_private_key(key.encode(), None)
        shown = load_pem_x509_certificate(certificate.encode()) if certificate else None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("is not a readable private key with its certificate in PEM form") from error
    if not isinstance(loaded, RSAPrivateKey) or loaded.key_size < MIN_BITS:
        raise ValueError(f"is not an RSA key of at least {MIN_BITS} bits")
    if shown is not None and shown.public_key() != loaded.public_key():
        raise ValueError("has a certificate of another key first; the certificate of the key has to be the first one")


def client_assertion(key: str, client_id: str, token_url: str) -> str:
    """Return the JWT that replaces the client secret (RFC 7523 section 2.2), new each time.

    With a certificate as Microsoft documents it: PS256, the digest of the certificate in ``x5t#S256``. Without one by
    RS256, which every issuer knows (RFC 7523 section 5).

    :param key: ``ReadKey.pem``.
    """
    digest = _certificate_digest(key)
    now = int(time.time())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": token_url,
        "jti": str(uuid.uuid4()),
        "iat": now,
        "nbf": now,
        "exp": now + ASSERTION_SECONDS,
    }
    return _sign(key, claims, "PS256" if digest else "RS256", {"x5t#S256": digest} if digest else {})


def bearer_assertion(key: str, client_id: str, login: str, token_url: str, scope: str) -> str:
    """Return the JWT that asks for a token for this login (RFC 7523 section 2.1; Google's service accounts).

    :param key: ``ReadKey.pem``. :param client_id: the address of the service account at Google.
    """
    now = int(time.time())
    claims = {
        "iss": client_id,
        "sub": login,
        "scope": scope,
        "aud": token_url,
        "jti": str(uuid.uuid4()),
        "iat": now,
        "exp": now + BEARER_SECONDS,
    }
    return _sign(key, claims, "RS256", {})


def _certificate_digest(key: str) -> str:
    """Return the SHA-256 of the certificate in base64url (RFC 7515 section 4.1.8); '' if there is none."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509 import load_pem_x509_certificate

    if "BEGIN CERTIFICATE" not in key:
        return ""
    digest = load_pem_x509_certificate(key.encode()).fingerprint(SHA256())
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _sign(key: str, claims: dict[str, object], algorithm: str, header: dict[str, object]) -> str:
    import jwt
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    loaded = load_pem_private_key(key.encode(), None)
    assert isinstance(loaded, RSAPrivateKey), "read_key has checked that"
    return jwt.encode(claims, loaded, algorithm, header)
