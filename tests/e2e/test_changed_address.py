"""A company changes its public address while mail is under way."""

from __future__ import annotations

from tests.e2e.test_manual_4_3 import CUSTOMER, answer_of_alex, letter, receivers, write
from tests.system import System, until

SUPPORT, HELP = "support@company.com", "help@company.com"


def test_answers_find_their_author_after_a_change_of_the_address(system: System) -> None:
    # given a mail that was fetched, and an answer of Alex to a customer
    system.apply(system.company())
    earlier = letter(SUPPORT)
    system.provider.put(SUPPORT, earlier.as_bytes())
    assert receivers(system, earlier) == ["alex@local.com", "jim@local.com"]
    sent = answer_of_alex(system)
    # when the address is changed; the mailbox at the provider and its login are the same
    done = system.run("external", "set", SUPPORT, f"address={HELP}", f"login={SUPPORT}", f"aliases=[{SUPPORT}]")
    assert done.exit_code == 0, done.output
    # then the customer's answer to the former address reaches Alex alone, by name and by reference
    assert write(system, sent["From"], answers=sent["Message-ID"]) == ["alex@local.com"]
    assert write(system, SUPPORT, answers=sent["Message-ID"]) == ["alex@local.com"]
    assert write(system, f'"Jim" <{HELP}>') == ["jim@local.com"]
    # and nothing is fetched a second time
    token = str(earlier["Message-ID"]).encode()
    assert [sum(token in mail for mail in system.mails(f"{name}@local.com")) for name in ("alex", "jim")] == [1, 1]
    # and Alex writes under the new one
    assert answer_of_alex(system)["From"].replace('"', "") == f"Alex <{HELP}>"


def test_a_person_reads_and_writes_after_a_change_of_their_address(system: System) -> None:
    system.apply(system.company())
    assert write(system, f'"Alex" <{SUPPORT}>') == ["alex@local.com"]
    before = system.mails("alex@local.com")
    # when
    done = system.run("local", "set", "alex@local.com", "address=al@local.com", "addresses=[alex@local.com]")
    assert done.exit_code == 0, done.output
    # then both addresses log in to the same mailbox
    assert until(lambda: system.mails("al@local.com")) == before == system.mails("alex@local.com")
    system.provider.add_mailbox(CUSTOMER, "secret")
    message = letter(f"Anna <{CUSTOMER}>", author="Alex <al@local.com>")
    system.submit("al@local.com", [CUSTOMER], message)
    token = str(message["Message-ID"]).encode()
    [mail] = until(lambda: [mail for mail in system.provider.mail_of(CUSTOMER) if token in mail])
    assert b"Alex" in mail and SUPPORT.encode() in mail and b"al@local.com" not in mail
