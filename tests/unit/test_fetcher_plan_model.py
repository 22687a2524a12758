"""Any order of arrivals, deletions by others, renumberings, cut polls and lost QUITs: each mail is delivered once."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.fetcher.plan import ProviderList, RenumberedMails, decide, is_deletion_due, preexisting_keys
from shared.model import LedgerEntry, LedgerState
from tests.unit.test_fetcher_plan import NOW, account, poll


class Model(RuleBasedStateMachine):
    """A provider (UIDL to body), and a ledger that is changed as shared/store/uidl_ledger.py changes its table."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.provider: dict[str, bytes] = {}
        self.ledger: dict[int, LedgerEntry] = {}
        self.delivered: Counter[bytes] = Counter()
        self.arrived: Counter[bytes] = Counter()
        self.deleted_by_us: list[tuple[bytes, bool]] = []
        self.uidls = itertools.count(1)
        self.ids = itertools.count(1)
        self.bodies = itertools.count(1)
        self.first = True
        self.settings = account(history="all", delete_after_days=1)

    @rule(twin=st.booleans())
    def arrive(self, twin: bool) -> None:
        live = list(self.provider.values())
        body = live[-1] if twin and live else b"body %d" % next(self.bodies)
        self.provider[f"u{next(self.uidls)}"] = body
        self.arrived[body] += 1

    @rule(data=st.data())
    def delete_elsewhere(self, data: st.DataObject) -> None:
        # Only what was fetched already: the rest cannot be delivered by anybody. And no twins: one that goes while
        # another one comes cannot be told from one that is renumbered.
        ours = [
            uidl
            for uidl, body in self.provider.items()
            if self.arrived[body] == 1
            and any(row.key == uidl and row.state in ("fetched", "deleting") for row in self.ledger.values())
        ]
        if ours:
            del self.provider[data.draw(st.sampled_from(ours))]

    @rule()
    def renumber(self) -> None:
        # a mail whose DELE was lost is new under a new UIDL, so that is left out here
        if not any(row.state == "deleting" and row.key in self.provider for row in self.ledger.values()):
            self.provider = {f"u{next(self.uidls)}": body for body in self.provider.values()}

    @rule(hours=st.sampled_from([1, 30]))
    def wait(self, hours: int) -> None:
        self.now += datetime.timedelta(hours=hours)

    @rule(commits=st.sampled_from([0, 1, 2, 100]), quits=st.booleans())
    def poll(self, commits: int, quits: bool) -> None:
        """A poll that is cut after so many mails; without ``quits`` the provider deletes nothing."""
        drop = ProviderList.of(enumerate(self.provider, 1), True)
        if self.first:
            for key in preexisting_keys(drop, self.ledger.values()):
                self._put(LedgerEntry(next(self.ids), key, "history", None, True, None, None, None, 0, None, self.now))
            self.first = False
        plan = decide(drop, list(self.ledger.values()), self.settings, 10**9, poll(now=self.now))
        for row in plan.closed:
            del self.ledger[row.id]
        for row in plan.vanished:
            before: LedgerState = row.state
            self._put(replace(row, state="vanished", before="history" if before == "history" else "fetched"))
        for row in plan.reappeared:
            self._put(replace(row, state=row.before or "fetched", before=None))
        deletes = []
        for mail, row in plan.delete:
            self._put(replace(self.ledger[row.id], state="deleting"))
            deletes.append((mail.key, row.was_history))
        renumbered = RenumberedMails.of(plan.missing)
        for want in plan.fetch[:commits]:
            body = self.provider[want.mail.key]
            known = renumbered.take_match(body, len(body)) if want.row is None else None
            if known is not None:
                self._put(replace(self.ledger[known.id], key=want.mail.key, state="fetched", before=None))
                continue
            self.delivered[body] += 1
            at_once = is_deletion_due(want.was_history, self.now, self.settings, self.now)
            assert not at_once
            id_ = want.row.id if want.row else next(self.ids)
            self._put(
                LedgerEntry(
                    id_,
                    want.mail.key,
                    "fetched",
                    None,
                    want.was_history,
                    len(body),
                    body,
                    self.now,
                    0,
                    None,
                    self.now,
                )
            )
        if len(plan.fetch) <= commits and quits:
            for key, was_history in deletes:
                self.deleted_by_us.append((self.provider.pop(key), was_history))

    def _put(self, row: LedgerEntry) -> None:
        self.ledger[row.id] = row

    @invariant()
    def nothing_is_delivered_twice(self) -> None:
        assert self.delivered <= self.arrived

    @invariant()
    def no_key_is_used_twice(self) -> None:
        assert max(Counter(row.key for row in self.ledger.values()).values(), default=1) == 1

    @invariant()
    def only_what_was_delivered_and_is_no_history_is_deleted(self) -> None:
        assert all(self.delivered[body] and not was_history for body, was_history in self.deleted_by_us)

    def teardown(self) -> None:
        self.poll(100, True)
        assert self.delivered == self.arrived


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
