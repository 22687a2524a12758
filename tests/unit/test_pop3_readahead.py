"""Which mails are read ahead, and how many octets of them may be held."""

from __future__ import annotations

from services.pop3_out.readahead import MAILS, OCTETS, Budget, Shelf, plan
from shared.messages import HEAD_OCTETS


def sizes(*octets: int | None) -> dict[int, int | None]:
    return dict(enumerate(octets, 1))


def test_a_client_that_asks_for_one_mail_gets_one_read() -> None:
    assert plan(1, [], 0, sizes(10, 10, 10).get, OCTETS) == [1]


def test_a_client_that_reads_in_order_has_more_and_more_read_ahead() -> None:
    mails = sizes(*[10] * 10)
    assert plan(2, [], 1, mails.get, OCTETS) == [2, 3]
    assert plan(4, [], 3, mails.get, OCTETS) == [4, 5, 6, 7]
    assert plan(8, [], 7, mails.get, OCTETS) == [8, 9, 10]


def test_mails_that_are_asked_for_already_are_read_together() -> None:
    assert plan(5, [3, 1, 5], 0, sizes(10, 10, 10, 10, 10).get, OCTETS) == [5, 3, 1]


def test_no_deleted_and_no_missing_mail_is_read() -> None:
    assert plan(1, [2, 0, 9], 3, sizes(10, None, 10).get, OCTETS) == [1]
    assert plan(1, [2], 3, sizes(10, None, 10).get, OCTETS) == [1, 3]


def test_large_mails_are_left_to_be_streamed() -> None:
    assert plan(1, [2, 3], 0, sizes(10, HEAD_OCTETS + 1, 10).get, OCTETS) == [1, 3]


def test_what_is_read_ahead_fits_into_the_room() -> None:
    assert plan(1, [2, 3, 4], 0, sizes(500, 40, 40, 40).get, 100) == [1, 2, 3]
    assert plan(1, [2, 3, 4], 0, sizes(500, 40, 40, 40).get, 0) == [1]
    assert len(plan(1, list(range(2, 500)), 0, lambda number: 0, OCTETS)) == MAILS


def test_a_shelf_gives_its_octets_back() -> None:
    # given two sessions that share 100 octets
    budget = Budget(100)
    one, two = Shelf(budget), Shelf(budget)
    # when one of them holds 70
    one.put({1: bytes(30), 2: bytes(40)})
    # then the other has room for 30
    assert two.room == 30
    # and more as mails are sent, or the session ends
    assert one.take(1) == bytes(30)
    assert one.take(1) is None
    assert two.room == 60
    one.clear()
    assert two.room == 100
    assert one.take(2) is None
