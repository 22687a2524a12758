"""services/imap_out/current_folders.py: for how long a state needs no query."""

from __future__ import annotations

from services.imap_out.current_folders import CURRENT_SECONDS, MAX_PEOPLE, CurrentFolders

ALEX, JIM = 1, 2
INBOX, SENT, OTHER = 10, 11, 20


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def known() -> tuple[CurrentFolders, Clock]:
    clock = Clock()
    return CurrentFolders(clock), clock


def test_a_folder_is_current_from_a_query_until_a_hint() -> None:
    current, _ = known()
    assert not current.is_current(ALEX, INBOX)
    current.record(current.begin(ALEX), INBOX)
    current.record(current.begin(JIM), OTHER)
    assert current.is_current(ALEX, INBOX) and not current.is_current(ALEX, SENT)
    current.hint([ALEX, 77])
    assert not current.is_current(ALEX, INBOX) and current.is_current(JIM, OTHER)


def test_time_ends_it_since_a_hint_may_be_lost() -> None:
    current, clock = known()
    look = current.begin(ALEX)
    clock.seconds += CURRENT_SECONDS / 2  # the query took so long
    current.record(look, INBOX)
    assert current.is_current(ALEX, INBOX)
    clock.seconds += CURRENT_SECONDS / 2
    assert not current.is_current(ALEX, INBOX)


def test_a_hint_during_the_query_counts() -> None:
    current, _ = known()
    look = current.begin(ALEX)
    current.hint([ALEX])
    current.record(look, INBOX)
    assert not current.is_current(ALEX, INBOX)


def test_an_own_change_leaves_its_folder_current_alone() -> None:
    current, _ = known()
    current.record(current.begin(ALEX), SENT)
    look = current.begin(ALEX)
    current.hint_own(look, INBOX)
    assert current.is_current(ALEX, INBOX) and not current.is_current(ALEX, SENT)
    current.hint_own(current.begin(ALEX), None)
    assert not current.is_current(ALEX, INBOX)


def test_of_two_changes_at_once_no_state_has_both() -> None:
    current, _ = known()
    one, other = current.begin(ALEX), current.begin(ALEX)
    current.hint_own(one, INBOX)
    current.hint_own(other, INBOX)
    assert not current.is_current(ALEX, INBOX)


def test_the_people_that_are_known_are_limited() -> None:
    current, _ = known()
    for local_id in range(MAX_PEOPLE + 2):
        current.record(current.begin(local_id), INBOX)
    assert not current.is_current(0, INBOX) and current.is_current(MAX_PEOPLE + 1, INBOX)
