"""shared/provider/client_keys.py: the keys that are accepted, and what they sign."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shared.provider.client_keys import ASSERTION_SECONDS, bearer_assertion, client_assertion, read_key
from tests.token_server import client_key

URL = "https://issuer.example/token"


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> str:
    secured = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, secured).decode()


def claims_of(assertion: str) -> dict[str, Any]:
    return dict(jwt.decode(assertion, options={"verify_signature": False}))


def test_a_key_is_read_alone_with_a_certificate_and_from_google_s_file() -> None:
    plain, certified = client_key(), client_key(certified=True)
    assert read_key(plain.pem).pem == plain.pem and read_key(plain.pem).owner == ""
    assert read_key(certified.pem).pem == certified.pem
    # the certificate may come first, with other texts around, and with those of its issuers behind
    key, certificate = certified.pem.split("-----END PRIVATE KEY-----\n")
    other = client_key("other", certified=True).pem.split("-----END PRIVATE KEY-----\n")[1]
    mixed = f"Bag Attributes\n{certificate}\n{other}subject=x\r\n{key}-----END PRIVATE KEY-----\r\n"
    assert read_key(mixed).pem == certified.pem
    read = read_key(f"\n{plain.as_google_json('robot@project.example')}")
    assert (read.pem, read.owner) == (plain.pem, "robot@project.example")
    assert "PRIVATE" not in repr(read)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not one private key in PEM form"),
        ("hush", "is not one private key in PEM form"),
        (client_key().pem + client_key("other").pem.replace("PRIVATE", "RSA PRIVATE"), "is not one private key"),
        ("-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----", "is not a readable private key"),
        (pem_of(rsa.generate_private_key(65537, 2048), b"hush"), "is protected by a password"),
        (pem_of(rsa.generate_private_key(65537, 1024)), "is not an RSA key of at least 2048 bits"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "is not an RSA key"),
        ("{", "is not the JSON key file of a Google service account"),
        (json.dumps({"installed": {"client_secret": "hush"}}), "is not the JSON key file"),
        (
            client_key().pem + client_key("other", certified=True).pem.partition("-----END PRIVATE KEY-----\n")[2],
            "has a certificate of another key",
        ),
    ],
    ids=range(10),
)
def test_what_is_no_usable_key_is_refused_without_repeating_it(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_key(text)
    assert "hush" not in str(caught.value) and "BEGIN" not in str(caught.value)


def test_an_assertion_instead_of_a_secret_is_new_each_time_and_short_lived() -> None:
    certified = client_key(certified=True)
    one, other = (client_assertion(certified.pem, "us", URL) for _ in range(2))
    claims = jwt.decode(one, certified.public, ["PS256"], audience=URL)
    assert (claims["iss"], claims["sub"], claims["exp"] - claims["iat"]) == ("us", "us", ASSERTION_SECONDS)
    assert claims["jti"] != claims_of(other)["jti"] and abs(claims["iat"] - time.time()) < 60
    header = jwt.get_unverified_header(one)
    assert header == {"alg": "PS256", "typ": "JWT", "x5t#S256": certified.thumbprint}
    # without a certificate
    plain = client_key()
    jwt.decode(client_assertion(plain.pem, "us", URL), plain.public, ["RS256"], audience=URL)


def test_an_assertion_for_a_mailbox_names_it_and_lasts_an_hour() -> None:
    key = client_key()
    assertion = bearer_assertion(key.pem, "robot@project.example", "support@company.com", URL, "mail")
    claims = jwt.decode(assertion, key.public, ["RS256"], audience=URL)
    assert (claims["iss"], claims["sub"], claims["scope"]) == ("robot@project.example", "support@company.com", "mail")
    assert claims["exp"] - claims["iat"] == 3600
