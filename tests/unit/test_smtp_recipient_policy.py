"""services/smtp_in/recipient_policy.py: which recipients are local, relayed or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.smtp_in.recipient_policy import Directory, check_syntax, delivery_key, resolve
from shared.model import EnvelopeRecipient, External, Local, Relay, Server

SERVER = Server("mail.example.com", 25, "none")


def external(id_: int, address: str, *aliases: str) -> External:
    """An external account."""
    return External(id_, address, True, address, b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, aliases)


def local(id_: int, address: str, *addresses: str, external_id: int = 1) -> Local:
    """A local account."""
    return Local(id_, address, True, "hash", address.partition("@")[0].title(), (), addresses, external_id, None)


ALEX, JIM, KIM = (
    local(1, "alex@local.com", "a.smith@local.com"),
    local(2, "jim@local.com"),
    local(3, "kim@company.com", external_id=2),
)
SUPPORT, SALES = external(1, "support@company.com", "help@company.com"), external(2, "sales@company.com")
OFFICE = Directory.from_accounts([SUPPORT, SALES], [ALEX, JIM, KIM])


def refused(address: str, directory: Directory = OFFICE) -> str:
    """The reply that refuses an address."""
    answer = resolve(directory, address)
    assert not isinstance(answer, EnvelopeRecipient)
    return str(answer)


@pytest.mark.parametrize(
    ("address", "kind", "target"),
    [
        ("alex@local.com", "local", 1),
        ("ALEX@Local.COM", "local", 1),
        ("a.smith@local.com", "local", 1),
        ("kim@company.com", "local", 3),  # in a domain shared with an external account exact addresses are inside …
        ("unknown@company.com", "relay", None),  # … and the rest is the provider's
        ("support@company.com", "external", 1),
        ("help@company.com", "external", 1),
        ("support+ticket@company.com", "external", 1),
        ("customer@example.net", "relay", None),
        ("alex@sub.local.com", "relay", None),
    ],
)
def test_an_address_goes_where_the_accounts_say(address: str, kind: str, target: int | None) -> None:
    assert resolve(OFFICE, address) == EnvelopeRecipient(address, kind, target)  # type: ignore[arg-type]  # a plain text


@pytest.mark.parametrize("address", ["nobody@local.com", "alex+tag@local.com", "ALEXX@LOCAL.COM", "nobody@local.com."])
def test_an_unknown_address_of_a_local_domain_is_never_relayed(address: str) -> None:
    assert check_syntax(address, True) or refused(address).startswith("550 5.1.1")


def test_mail_to_a_disabled_person_goes_to_the_delegate() -> None:
    away = replace(ALEX, enabled=False, delegate_id=JIM.id)

    assert resolve(Directory.from_accounts([SUPPORT], [away, JIM]), "alex@local.com") == EnvelopeRecipient(
        "alex@local.com", "local", 2
    )


@pytest.mark.parametrize(
    "changes", [{"enabled": False}, {"external_id": 2}, {"id": 9}, {"enabled": False, "delegate_id": 3}]
)
def test_a_delegate_who_cannot_receive_mail_is_ignored(changes: dict[str, object]) -> None:
    away = replace(ALEX, enabled=False, delegate_id=JIM.id)
    delegate = replace(JIM, **changes)  # type: ignore[arg-type]  # names and values of fields

    assert refused("alex@local.com", Directory.from_accounts([SUPPORT, SALES], [away, delegate, KIM])).startswith(
        "550 5.2.1"
    )


def test_disabled_and_without_a_delegate_is_refused() -> None:
    assert refused("alex@local.com", Directory.from_accounts([SUPPORT], [replace(ALEX, enabled=False)])).startswith(
        "550 5.2.1"
    )


def test_two_addresses_of_one_person_are_one_mailbox() -> None:
    pairs = [
        ("alex@local.com", "a.smith@local.com"),
        ("support@company.com", "help@company.com"),
        ("x@example.net", "X@EXAMPLE.net"),
    ]

    for one, other in pairs:
        first, second = resolve(OFFICE, one), resolve(OFFICE, other)
        assert isinstance(first, EnvelopeRecipient) and isinstance(second, EnvelopeRecipient)
        assert delivery_key(first) == delivery_key(second)
    assert delivery_key(EnvelopeRecipient("a@b", "local", 1)) != delivery_key(EnvelopeRecipient("a@b", "external", 1))


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("alex", "553 5.1.3"),
        ("alex@", "553 5.1.3"),
        ("@local.com", "553 5.1.3"),
        ("@a.example:alex@local.com", "553 5.1.3"),
        ("user%other.example@local.com", "553 5.1.3"),
        ("other.example!user@local.com", "553 5.1.3"),
        ('"alex"@local.com', "553 5.1.3"),
        ('"a@other.example"@local.com', "553 5.1.3"),
        ("a@b@local.com", "553 5.1.3"),
        ("alex@[127.0.0.1]", "553 5.1.2"),
        ("alex@[IPv6:::1]", "553 5.1.2"),
        ("alex@local..com", "553 5.1.2"),
        ("alex@-x.com", "553 5.1.2"),
        ("alex@local.com.", "553 5.1.2"),
        ("a(b)@local.com", "553 5.1.3"),
        ("a\x01b@local.com", "553 5.1.3"),
        ("x" * 250 + "@a.de", "553 5.1.3"),
        ("alex@" + "x" * 64 + ".com", "553 5.1.2"),
        ("j\xf6rg@example.com", "553 5.6.7"),
    ],
)
def test_an_odd_address_is_refused_clearly(address: str, code: str) -> None:
    refusal = str(check_syntax(address, False))
    assert refusal.startswith(code)
    assert refusal.isascii()  # as long as the client has not asked for SMTPUTF8 (RFC 6531 section 3.7.4.2)


@pytest.mark.parametrize(
    "address",
    ["alex@local.com", "a..b@docomo.example", "o'brien+x=y/z@example.com", "alex@office", "a_b@x_y.example.com"],
)
def test_an_ordinary_address_is_accepted(address: str) -> None:
    assert check_syntax(address, False) is None


def test_an_address_beyond_ascii_is_accepted_with_smtputf8() -> None:
    assert check_syntax("j\xf6rg@b\xfccher.example", True) is None
    assert str(check_syntax("j\udcf6rg@example.com", True)).startswith("553 5.1.3")


@given(st.text(max_size=60), st.booleans())
def test_any_text_is_decided_or_refused_in_one_printable_line(text: str, smtputf8: bool) -> None:
    answer = check_syntax(text, smtputf8) or resolve(OFFICE, text)

    if not isinstance(answer, EnvelopeRecipient):
        assert str(answer).isprintable() and str(answer)[0] == "5"
