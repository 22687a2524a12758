"""The books of the fault driver's IMAP clients find each kind of contradiction, and no other."""

from __future__ import annotations

from tests.faults.imap_books import Flags, FolderBooks

SEEN: Flags = frozenset((b"\\Seen",))
NONE: Flags = frozenset()


def known(shared: bool = False) -> FolderBooks:
    """A folder with the mails 1 and 2."""
    books = FolderBooks("x", shared)
    books.select(7, 3, 10)
    books.compare_list({1: NONE, 2: SEEN}, 3)
    return books


def test_what_goes_as_it_was_answered_is_no_contradiction() -> None:
    books = known()
    books.read(1, "a")
    books.begin_flags([1])
    books.end_flags([1], SEEN, ())
    books.begin_removal([2])
    books.end_removal([2])
    books.add(3, "b", NONE)
    books.select(7, 5, 12)
    books.compare_list({1: SEEN, 3: NONE, 4: NONE}, 5)  # another client has added 4
    books.read(1, "a")
    assert books.wrong == []
    assert books.present() == [1, 3, 4] and books.unread() == [4]


def test_a_change_without_an_answer_may_be_made_or_not() -> None:
    for flags, there in ((NONE, True), (SEEN, False)):
        books = known()
        books.begin_flags([1])
        books.begin_removal([2])
        books.select(7, 3, 11)
        books.compare_list({1: flags} | ({2: SEEN} if there else {}), 3)
        books.compare_list({1: SEEN}, 3)  # it may be made later, too
        assert books.wrong == []
        assert books.steady() == []


def test_each_contradiction_is_found() -> None:
    lost_flag = known()
    lost_flag.begin_flags([1])
    lost_flag.end_flags([1], SEEN, ())
    lost_flag.compare_list({1: NONE, 2: SEEN}, 3)
    vanished = known()
    vanished.compare_list({1: NONE}, 3)
    came_back = known()
    came_back.begin_removal([2])
    came_back.end_removal([2])
    came_back.compare_list({1: NONE, 2: SEEN}, 3)
    reused = known()
    reused.compare_list({1: NONE, 2: SEEN}, 9)
    reused.compare_list({1: NONE, 2: SEEN, 5: NONE}, 9)
    given_twice = known()
    given_twice.add(2, "b", NONE)
    other_octets = known()
    other_octets.read(1, "a")
    other_octets.read(1, "b")
    renewed = known()
    renewed.select(8, 3, 10)
    back = known()
    back.compare_list({1: NONE, 2: SEEN}, 9)
    back.select(7, 8, 9)
    for books in (lost_flag, vanished, came_back, reused, given_twice, other_octets, renewed, back):
        assert len(books.wrong) == 1, books.wrong
    # where other clients delete mail, one that is missing is none
    books = known(shared=True)
    books.compare_list({1: NONE}, 3)
    assert books.wrong == []
