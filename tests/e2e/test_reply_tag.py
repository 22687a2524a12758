"""The manual's *Answers without a name* on the whole system: from the probe mail to the statistic."""

from __future__ import annotations

import smtplib

from tests.e2e.test_manual_4_3 import CUSTOMER, answer_of_alex, letter, receivers
from tests.system import System

SUPPORT = "support@company.com"
ALEX, JIM = "alex@local.com", "jim@local.com"


def answer(system: System, to: str) -> list[str]:
    """Send a mail without a name and without references through the provider's own Postfix. Return who gets it."""
    message = letter(to, text=f"To {to}\n")
    with smtplib.SMTP(system.provider.host, system.provider.smtp_port, timeout=60) as smtp:
        smtp.sendmail(CUSTOMER, [to], message.as_bytes())
    return receivers(system, message)


def test_an_answer_that_kept_only_the_tag_goes_to_its_author(system: System) -> None:
    # given an account that may keep mail, and a probe mail, of other tests
    system.apply(system.company())
    before = system.json("external", "answers", SUPPORT)
    # when a probe mail has made its way, then the setting is accepted, and the probe mail is in nobody's mailbox
    probe = system.json("external", "probe-tag", SUPPORT, "--wait", "300")
    assert probe["result"] == "arrived"
    assert system.run("external", "set", SUPPORT, "reply_tag=true").exit_code == 0
    assert system.mails(ALEX) == system.mails(JIM) == []
    # when Alex writes, then an answer to his Reply-To address reaches him alone
    address = answer_of_alex(system)["Reply-To"].addresses[0]
    assert address.display_name == "Alex" and address.addr_spec.startswith("support+")
    assert answer(system, address.addr_spec) == [ALEX]
    # and one with a tag that nobody has made reaches everybody, as one without a tag
    assert answer(system, "support+made0up@company.com") == [ALEX, JIM]
    # and the statistic has the one answer that it found
    found = system.json("external", "answers", SUPPORT)
    assert {way: found[way] - before[way] for way in ("tag", "name", "reference")} == {
        "tag": 1,
        "name": 0,
        "reference": 0,
    }
