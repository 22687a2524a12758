"""What a failover may take away, and how soon mail flows after it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.failover.books import Lag, Seen, flow_since, take_undone, within, wrong_inbox
from tests.faults.books import judge
from tests.rolling.imap_clients import Inbox

LAG = Lag(10.0, 16.0)


def seen(what: str, begin: float, end: float, where: str = "alex@local.com") -> Seen:
    return Seen(what, where, begin, end)


def test_only_what_may_have_happened_in_the_lag_is_in_it() -> None:
    found = within([seen("before", 8, 9), seen("in", 12, 13), seen("about", 9, 11), seen("after", 16.5, 17)], [LAG])
    assert found == Counter({("in", "alex@local.com"): 1, ("about", "alex@local.com"): 1})


def test_a_lag_explains_the_losses_that_it_may_have_caused_alone() -> None:
    # given two lost mails and two that came twice
    expected = Counter({(name, "alex@local.com"): 1 for name in ("a", "b", "c", "d")})
    found = Counter({("c", "alex@local.com"): 2, ("d", "alex@local.com"): 2})
    findings = judge(expected, found, {"a", "b", "c", "d"})
    # when one of each was seen in the lag
    undone = take_undone(findings, Counter({("a", "alex@local.com"): 1}), Counter({("c", "alex@local.com"): 5}))
    # then the others are findings
    assert undone.lost == Counter({("a", "alex@local.com"): 1})
    assert undone.repeated == Counter({("c", "alex@local.com"): 1})
    assert findings.lost == Counter({("b", "alex@local.com"): 1})
    assert findings.duplicate == Counter({("d", "alex@local.com"): 1})
    assert not findings.clean


def test_mail_of_before_a_failover_says_nothing_about_the_time_after_it() -> None:
    offered, begun = {"old": 9.0, "new": 11.0}, {"out-old": 9.0, "out-new": 12.0}
    read, heard = [seen("old", 13, 14)], [seen("old", 13, 13)]
    early = flow_since(10.0, offered, begun, {"out-old": 13.0}, read, heard, [seen("out-old", 13, 14)])
    assert not early.complete
    assert (early.taken, early.inward, early.heard, early.outward) == (None, None, None, None)
    read.append(seen("new", 14, 15))
    taken, relayed = {"out-old": 13.0, "out-new": 12.5}, [seen("out-new", 15, 16)]
    assert not flow_since(10.0, offered, begun, taken, read, heard, relayed).complete
    heard.append(seen("new", 14, 14))
    flow = flow_since(10.0, offered, begun, taken, read, heard, relayed)
    assert (flow.taken, flow.inward, flow.heard, flow.outward) == (2.5, 5.0, 4.0, 6.0)
    assert flow.complete


def inbox(**mails: bytes) -> Inbox:
    return Inbox({(7, int(name.removeprefix("uid"))): mail for name, mail in mails.items()})


@pytest.mark.parametrize(
    ("by_pop3", "by_imap", "known", "wrong"),
    [
        ([b"a", b"b"], inbox(uid1=b"a", uid2=b"b"), inbox(uid1=b"a"), ""),
        ([b"a", b"b"], inbox(uid1=b"a"), inbox(), "mails by POP3 alone: 1"),
        ([b"a"], inbox(uid1=b"a", uid2=b"a"), inbox(), "mails by IMAP alone: 1"),
        ([b"a"], inbox(uid1=b"a"), inbox(uid1=b"lost"), "UIDs that named two mails: 1"),
        (
            [b"a"],
            inbox(uid1=b"a"),
            inbox(uid1=b"a", uid2=b"b"),
            "mails that a client had read by IMAP, and that are gone: 1",
        ),
    ],
)
def test_a_mailbox_by_imap_is_that_by_pop3_and_that_of_the_client(
    by_pop3: list[bytes], by_imap: Inbox, known: Inbox, wrong: str
) -> None:
    assert wrong_inbox(by_pop3, by_imap, known, may_vanish=False) == ([wrong] if wrong else [])
    assert wrong_inbox(by_pop3, by_imap, known, may_vanish=True) == ([wrong] if wrong and "gone" not in wrong else [])
