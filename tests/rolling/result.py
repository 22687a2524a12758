"""What a rolling upgrade has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.faults.books import Findings
from tests.rolling.clients import OUTCOMES, Tally


@dataclass(slots=True)
class Result:
    """What a run has found."""

    pop3: Tally = field(default_factory=Tally)
    imap: Tally = field(default_factory=Tally)
    smtp: Tally = field(default_factory=Tally)
    mailboxes: Findings = field(default_factory=Findings)
    inboxes: Findings = field(default_factory=Findings)  # of the same mailboxes, by IMAP
    providers: Findings = field(default_factory=Findings)
    unclean: int = 0  # processes that had to be killed, or ended with an error
    seconds: float = 0.0
    slowness: float = 1.0  # of the machine, as measure_slowness: the most of the run
    mails: int = 0
    submissions: int = 0
    log: list[str] = field(default_factory=list)  # failures that the services have logged, one of each kind

    @property
    def tallies(self) -> dict[str, Tally]:
        """What clients noticed, by protocol."""
        return {"POP3": self.pop3, "IMAP": self.imap, "SMTP": self.smtp}

    def lines(self) -> list[str]:
        """Return the report, for printing."""
        rows = [
            f"{name}: sessions {tally.sessions}, commands {tally.commands}, "
            + ", ".join(f"{outcome} {tally.ends[outcome]}" for outcome in OUTCOMES)
            + f", longest outage {tally.longest_outage:.1f} s"
            for name, tally in self.tallies.items()
        ]
        shown = [f"  {text}" for tally in self.tallies.values() for text in dict.fromkeys(tally.examples)]
        return [
            f"{self.mails} mails and {self.submissions} submissions in {self.seconds:.0f} s",
            f"processes that did not stop by themselves: {self.unclean}; slowness of the machine: {self.slowness:.1f}",
            *rows,
            *shown[:20],
            *self.mailboxes.lines("into mailboxes"),
            *self.inboxes.lines("the same mailboxes by IMAP"),
            *self.providers.lines("relayed"),
            *(f"  {line}" for line in self.log[:20]),
        ]
