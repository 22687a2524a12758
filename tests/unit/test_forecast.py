"""services/admin/accounts/forecast.py: what is said about the mails at a provider before they are fetched."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.admin.accounts.forecast import Identity, describe_policy, identity_of
from shared.model import External, LedgerEntry, Relay, Server

SERVER = Server("h", 1, "none")
ACCOUNT = External(1, "a@b.c", True, "x", b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, ())
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
KEPT = "; nothing will be deleted at the provider"


def row(key: str, state: Any, octets: int | None = 10, before: Any = None) -> LedgerEntry:
    """A row of the ledger."""
    return LedgerEntry(1, key, state, before, before == "history", octets, b"", NOW, 0, None, NOW)


def said(listed: Mapping[str, int | None], *known: LedgerEntry, met: bool = True, **changes: Any) -> str:
    return describe_policy(replace(ACCOUNT, **changes), listed, known, met)


def test_known_mails_are_told_from_new_ones_by_their_keys() -> None:
    listed = dict.fromkeys("abcde", 10)
    known = [row("a", "fetched"), row("b", "deleting"), row("c", "skipped"), row("d", "history")]
    assert said(listed, *known) == f"2 of them will be delivered, 2 were fetched already, 1 could not be fetched{KEPT}"
    stays = "1 were there at the first contact and stay there (history: from_now)"
    assert said(listed, *known, history="from_now").startswith("1 of them will be delivered, ")
    assert stays in said(listed, *known, history="from_now")


def test_before_the_first_poll_all_that_was_not_fetched_is_history() -> None:
    listed = dict.fromkeys("ab", 10)
    assert said(listed, met=False) == f"2 of them will be delivered{KEPT}"
    words = said(listed, row("a", "fetched"), met=False, history="from_now")
    assert words.startswith("0 of them will be delivered, 1 were fetched already, 1 were there at the first contact")


def test_after_a_change_of_the_protocol_mails_are_known_by_their_size() -> None:
    # given three fetched mails under the keys of another protocol, two of one size
    lost = [row(f"{n} before {n}", "vanished", octets, "fetched") for n, octets in enumerate((10, 10, 30))]
    # when the mails are listed under new keys, with one more of the same size, one of another and one of unknown size
    listed = {"a": 10, "b": 10, "c": 10, "d": 40, "e": None}
    # then each lost mail is found once
    assert said(listed, *lost) == (
        "3 of them will be delivered, 2 seem to be fetched already by their size, and are read again to compare them"
        f"{KEPT}"
    )


def lost(number: int, octets: int) -> LedgerEntry:
    """A fetched mail under the key of another protocol; its row has this id."""
    return replace(row(f"{number} before {number}", "vanished", octets, "fetched"), id=number)


def mail_id(name: str) -> Identity:
    return name.encode(), b"", b""


def test_after_a_change_of_the_protocol_mails_are_known_by_size_and_header() -> None:
    rows = [lost(1, 10), lost(2, 10), lost(3, 30), lost(4, 40), lost(5, 40)]
    known_as = {1: mail_id("one"), 2: mail_id("two"), 3: mail_id("three"), 4: mail_id("four")}
    listed = {"a": 10, "b": 10, "c": 31, "d": 40, "e": 40, "f": 10, "g": None, "h": 50}
    listed_as = {
        "a": mail_id("two"),  # by its header, whatever the order
        "b": mail_id("new"),  # the size of another mail
        "c": mail_id("three"),  # the header alone
        "d": mail_id("other"),  # the size of a mail whose header is not known
        "g": mail_id("four"),  # no size is reported
        "h": mail_id("new too"),
    }
    words = describe_policy(ACCOUNT, listed, rows, True, listed_as, known_as)
    assert words == (
        "4 of them will be delivered, 2 were fetched already by their size and header, 2 seem to be fetched already by "
        "their size, and are read again to compare them; 1 are unclear: they have the header of a fetched mail and "
        f"another size{KEPT}"
    )


def test_a_copy_of_a_mail_is_known_once() -> None:
    listed = dict.fromkeys("ab", 10)
    words = describe_policy(ACCOUNT, listed, [lost(1, 10)], True, dict.fromkeys("ab", mail_id("x")), {1: mail_id("x")})
    assert words.startswith("1 of them will be delivered, 1 were fetched already by their size and header;")


def test_a_mail_is_identified_by_message_id_date_and_topmost_received() -> None:
    head = b"Received: from a\r\n\tby b\r\nReceived: c\r\nMessage-ID:  <x@y>\r\nDate: Tue, 3 Nov\r\nSubject: s\r\n\r\n"
    assert identity_of(head) == (b"<x@y>", b"Tue,3Nov", b"fromabyb")
    assert identity_of(head.replace(b"\r\n\t", b" ")) == identity_of(head)  # folded in another way
    assert identity_of(head[:-4]) is None  # cut
    assert identity_of(b"Subject: s\r\n\r\n") is None


def test_mails_that_may_be_from_before_the_first_contact_are_unclear() -> None:
    lost = [row(f"{n} before {n}", "vanished", None, "history") for n in range(2)]
    words = said({"a": 10, "b": 20, "c": 30}, *lost, history="from_now")
    assert words.startswith("3 of them will be delivered; 2 are unclear: those from before the first contact will not")
    assert "unclear" not in said({"a": 10, "b": 20, "c": 30}, *lost)


def test_a_vanished_mail_that_is_listed_again_is_as_it_was_before() -> None:
    assert "1 were fetched already" in said({"a": 10}, row("a", "vanished", 10, "fetched"))


def test_the_account_s_state_and_its_deletions_are_told() -> None:
    assert said({"a": 1}, enabled=False).startswith("1 of them will be delivered once the account is enabled")
    assert "once everybody is there" in said({"a": 1}, hold=True)
    kept = "; mail that was there at the first contact is never deleted"
    assert said({}, delete_after_days=0).endswith(f"deleted at the provider as soon as it is stored here{kept}")
    assert said({}, delete_after_days=7, delete_history=True).endswith("provider 7 days after it was fetched")
