"""What the worst headers cost the readers: work and memory have limits, and grow with the length only."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest

from shared import routing
from shared.mime import addresses, bounces, encoded_words, headers
from shared.mime.addresses import address_matcher, fold_address, spellings
from shared.mime.display_names import normalise_uncached
from shared.routing import facts
from tests.faults import hostile_mails
from tests.unit.test_routing import E, external, people

KINDS = hostile_mails.kinds(E)
OCTETS = 128 * 1024
"""Length of a hostile value."""
LIMIT_SECONDS = 8.0
"""Limit of the processor time for it: some 0.1 s is needed, and what grows with the square takes twice the limit."""


def takes_no_long(read: Callable[[bytes], object], data: bytes) -> None:
    """Assert that the reader needs a time that grows with the length."""
    started = time.thread_time()
    read(data)
    assert time.thread_time() - started < LIMIT_SECONDS, data[:80]


def test_there_are_many_kinds_and_their_mails_differ() -> None:
    assert len(KINDS) >= 25
    for name, make in KINDS.items():
        first, second = make(1), make(2)
        assert first != second and abs(len(first) - len(second)) < 2000, name
        assert first == make(1)
        assert 50_000 < len(first) < 1024 * 1024 + 2000, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_of_the_worst_mails_are_small(kind: str) -> None:
    # given
    head = KINDS[kind](1)[: facts.HEAD_OCTETS]
    routing.read_facts(head, external())
    # when
    tracemalloc.start()
    read = routing.read_facts(head, external())
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # then
    assert len(routing.referenced_ids(read)) <= 200
    assert kept < 300_000
    assert peak < 6_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_for_the_facts_grows_with_the_length(kind: str) -> None:
    def route(head: bytes) -> None:
        read = routing.read_facts(head, external())
        routing.find_own_copy(read, external(), people(), {})
        routing.decide(read, external(), people(), {})

    takes_no_long(route, KINDS[kind](1))


UNITS = [
    b"(",
    b"(a)",
    b"((a)",
    b'"',
    b'"\\',
    b"\\",
    b"<",
    b"<a@b>",
    b"<a@b,",
    b"a@b,",
    b"a@ ",
    b"@",
    b"a ",
    b",",
    b":",
    b"[",
    b"=?",
    b"=?a?q?",
    b"=?utf-8?q?x?=",
    b"=?utf-7?b?w6k?= ",
    b"=?koi8-r?b?w6k?= =?gb2312?b?w6k?= ",
    b"=?iso-2022-jp?b?GyRCfGI?= ",
    b"=?iso-2022-jp?q?=1B$B=0E?= =?euc-jp?q?=8F=B0?= ",
    b"\r\n ",
    b"\0",
    "\u0301\u0327".encode(),
    b"\xff",
    b"> ",
    b"> Message-ID: x\r\n",
    b"Message-ID: <a@b>\r\n",
    b"a:\r\n",
    b"no colon\r\n",
    b"--b\r\n\r\n",
    b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n",
    b'boundary="',
]
READERS: dict[str, Callable[[bytes], object]] = {
    "mailboxes": headers.mailboxes,
    "message_ids": headers.message_ids,
    "field_text": headers.field_text,
    "by_name": headers.by_name,
    "fields": headers.fields,
    "header_end": headers.header_end,
    "decode": lambda value: encoded_words.decode(value.decode("latin-1")),
    "normalise": lambda value: normalise_uncached(value.decode("latin-1")),
    "fold_address": lambda value: fold_address(value.decode("latin-1")),
    "spellings": lambda value: spellings(value.decode("latin-1")),
    "reported_ids": lambda body: bounces.reported_ids(b"Content-Type: multipart/report; boundary=b\r\n\r\n" + body),
    "reported_ids of text": lambda body: bounces.reported_ids(b"Auto-Submitted: x\r\n\r\n" + body),
    "reported_ids of a long field": lambda body: bounces.reported_ids(b"Content-Type: multipart/a; " + body),
}


@pytest.mark.parametrize("reader", READERS)
def test_the_time_of_each_reader_grows_with_the_length(reader: str) -> None:
    for unit in UNITS:
        takes_no_long(READERS[reader], unit * (OCTETS // len(unit)))


@pytest.mark.parametrize("separator", [b",", b";", b"<"])
def test_one_mailbox_at_a_time_is_in_memory(separator: bytes) -> None:
    # given 400 KB of short addresses
    value = (b"a@b" + separator) * 100_000
    tracemalloc.start()
    # when
    try:
        for count, _ in enumerate(headers.iterate_mailboxes(value), 1):
            if count == 5000:
                break
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # then it needs little more than the text; a list of them all takes twenty megabytes
    assert peak < 1_000_000


def test_of_a_crowd_no_more_addresses_are_compared_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    compared: list[str] = []

    def matcher(own: tuple[str, ...]) -> Callable[[str], bool]:
        is_own = address_matcher(own)

        def count(address: str) -> bool:
            compared.append(address)
            return is_own(address)

        return count

    monkeypatch.setattr(facts, "address_matcher", matcher)
    # when
    for kind in ("short addresses", "many addresses", "the account's address again"):
        compared.clear()
        assert routing.read_facts(KINDS[kind](1), external()).problem
        # then: one From beside them
        assert len(compared) <= facts.FIELD_MAILBOXES + 1


def test_a_label_of_a_foreign_domain_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # given an account that is known
    routing.read_facts(KINDS["foreign A-labels"](1), external())
    converted: list[str] = []
    monkeypatch.setattr(addresses, "_u_label", converted.append)
    monkeypatch.setattr(addresses, "_a_label", converted.append)
    # when
    for kind in ("foreign A-labels", "foreign U-labels"):
        routing.read_facts(KINDS[kind](2), external())
    # then
    assert converted == []


@pytest.mark.parametrize(
    ("own", "given", "same"),
    [
        ("support@company.com", "SUPPORT@Company.com.", True),
        ("support@company.com", "support+a+b@company.com", True),
        ("support@company.com", "supportx@company.com", False),
        ("support@company.com", "support@x.company.com", False),
        ("support@company.com", "support@company.com.x", False),
        ("support@bücher.example", "support@xn--bcher-kva.example", True),
        ("support@bücher.example", "Support@XN--BCHER-KVA.example", True),
        ("support@bücher.example", "support@BU\u0308CHER.example", True),
        ("support@xn--bcher-kva.example", "support@bücher.example", True),
        ("support@xn--bcher-kva.example", "support@xn--bcher-kvb.example", False),
        ("support@bücher.пример.рф", "support@xn--bcher-kva.пример.xn--p1ai", True),
        ("jörg@company.com", "JO\u0308RG+x@company.com", True),
        ("support@company.com", "support", False),
        ("support@company.com", "@company.com", False),
    ],
)
def test_addresses_are_matched_as_folded_ones(own: str, given: str, same: bool) -> None:
    assert address_matcher(("other@x.example", own))(given) is same
    folded = fold_address(given)
    local, _, domain = folded.rpartition("@")
    assert (fold_address(own) in {folded, f"{local.partition('+')[0]}@{domain}"}) is same


def test_long_labels_stay_as_they_are_written() -> None:
    for label in ("xn--" + "a" * 60, "ü" * 64):
        assert fold_address(f"a@{label}.example") == f"a@{label}.example"
