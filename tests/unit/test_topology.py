"""The topology and the payloads of messages."""

from __future__ import annotations

import pytest

from shared.amqp import payloads, publications, topology
from shared.errors import Permanent


def test_a_routing_key_fits_in_255_octets_for_the_longest_address() -> None:
    address = "a" * 188 + "@company.com"
    assert len(topology.routing_key(topology.SUBMITTED, address).encode()) <= 255


def test_one_mail_to_twenty_people_is_one_message_with_nineteen_copies() -> None:
    people = [f"p{number}@local.com" for number in range(20)]
    [publication] = publications.routed([(7, people)])
    assert publication.key == "routed.p0@local.com"
    assert len(publication.copies) == 19
    assert payloads.read_payload(payloads.RoutedItem, publication.body).recipients == tuple(people)


def test_a_mail_to_a_thousand_people_fits_the_header_frame_of_a_message() -> None:
    found = publications.routed([(7, ["x" * 190 + f"{number}@l.example" for number in range(1000)])])
    assert len(found) == 10
    assert all(sum(len(copy) + 5 for copy in publication.copies) < 100_000 for publication in found)


def test_mails_to_the_same_people_travel_together_and_others_apart() -> None:
    alex, both = ["alex@l.example"], ["alex@l.example", "jim@l.example"]
    found = publications.routed((n, both if n % 2 else alex) for n in range(120))
    read = [(each.key, each.copies, payloads.read_payload(payloads.RoutedItem, each.body)) for each in found]
    assert [(key, copies, len(item.ids)) for key, copies, item in read] == [
        ("routed.alex@l.example", (), 50),
        ("routed.alex@l.example", (), 10),
        ("routed.alex@l.example", ("routed.jim@l.example",), 50),
        ("routed.alex@l.example", ("routed.jim@l.example",), 10),
    ]
    assert sorted(row for _, _, item in read for row in item.ids) == list(range(120))


def test_a_mail_without_recipients_is_not_announced() -> None:
    assert publications.routed([(7, [])]) == [] and publications.fetched([]) == []


def test_submissions_of_one_account_travel_together_but_not_too_many() -> None:
    publications_ = publications.submitted([(n, "b@c" if n == 7 else "a@b") for n in range(1, 112)])

    found = [(each.key, payloads.read_payload(payloads.SubmittedItem, each.body)) for each in publications_]
    assert [(key, len(item.ids)) for key, item in found] == [
        ("submitted.a@b", 50),
        ("submitted.a@b", 50),
        ("submitted.a@b", 10),
        ("submitted.b@c", 1),
    ]
    assert sorted(row for _, item in found for row in item.ids) == list(range(1, 112))


def test_the_mailboxes_that_a_batch_changed_are_one_transient_message() -> None:
    people = [(n, f"p{n}@local.com") for n in range(1, 120)]
    found = publications.changed([*people, *people])
    assert [(each.key, len(each.copies), each.transient) for each in found] == [
        ("changed.p1@local.com", 99, True),
        ("changed.p101@local.com", 18, True),
    ]
    read = [payloads.read_payload(payloads.ChangedItem, each.body).ids for each in found]
    assert sorted(local_id for ids in read for local_id in ids) == list(range(1, 120))


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'{"id": "x"}', b"\xff"])
def test_a_message_that_is_no_work_item_is_a_permanent_failure(body: bytes) -> None:
    with pytest.raises(Permanent, match="not a FetchedItem"):
        payloads.read_payload(payloads.FetchedItem, body)


def test_every_work_item_comes_back_as_it_went() -> None:
    for item in (
        payloads.FetchedItem(id=1, external="a@b.c"),
        payloads.RoutedItem(id=2, recipients=("a@b.c", "d@e.f")),
        payloads.SubmittedItem(id=3, external="a@b.c"),
        payloads.SubmittedItem(id=3, more_ids=(4, 5), external="a@b.c"),
    ):
        assert payloads.read_payload(type(item), item.to_json()) == item
