"""What ``demo`` prints, used as it is: sign in, read mail, write as the customer. A normal start warns of nothing."""

from __future__ import annotations

import json
import poplib
import re
import subprocess
from pathlib import Path

from tests.integration.test_folder_in_use import Command, folder
from tests.system import until

__all__ = ["folder"]


def test_what_demo_prints_can_be_used_as_it_stands(folder: Path) -> None:
    demo = Command(folder, "demo")
    try:
        until(lambda: "It stays up until Ctrl-C." in demo.said or demo.process.poll() is not None, 300)
        said = demo.said
        assert "Every step succeeded." in said, said
        # the console comes before the settings for mail clients, and its password is right
        console = re.search(r"Console: (http://\S+)\nSign in as admin with the password (\S+)\n", said)
        assert console is not None and console.start() < said.index("Settings for mail clients")
        assert console[2] == (folder / "admin.password").read_text().strip()
        # every person has a login
        people = re.findall(r"^(\w+@local\.com) +(\S+) +(\w+) +(\S+@company\.com) *$", said, re.M)
        assert [name for _, _, name, _ in people] == ["Alex", "Jim", "Kim", "Tom"]
        incoming = re.findall(r"^Incoming \(POP3\) +(\S+) +(\d+) +(?:none|STARTTLS) *$", said, re.M)
        host, port = incoming[0][0], int(incoming[0][1])
        # the commands for the customer work
        write, mailbox, read = re.findall(r"^  (.*curl .*)$", said, re.M)
        assert "1 " in shell(mailbox) and "Alex" in shell(read)
        before = count(host, port, *people[0][:2])
        shell(write)
        until(lambda: count(host, port, *people[0][:2]) == before + 1)
        # and no service warned
        assert warnings(folder) == []
    finally:
        assert demo.stop() == 0


def test_the_story_holds_with_a_provider_that_is_fetched_from_by_imap(folder: Path) -> None:
    demo = Command(folder, "demo", "--imap", "--exit", "--json")
    assert demo.end() == 0, demo.said
    played, _ = json.JSONDecoder().raw_decode(demo.said[demo.said.index("{") :])  # progress stands around it
    assert [step["ok"] for step in played["steps"]] == [True] * 6
    # the company's mail came by IMAP alone
    log = (folder / "provider" / "dovecot.log").read_text()
    for address in ("support@company.com", "sales@company.com"):
        assert re.search(f"imap-login: Info: Log(in|ged in): user=<{address}>", log)  # the latter since Dovecot 2.4
        assert not re.search(f"pop3-login: Info: Log(in|ged in): user=<{address}>", log)
    assert warnings(folder) == []


def shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def count(host: str, port: int, address: str, password: str) -> int:
    session = poplib.POP3(host, port, timeout=60)
    try:
        session.user(address)
        session.pass_(password)
        return session.stat()[0]
    finally:
        session.quit()


def warnings(folder: Path) -> list[str]:
    """The warnings and errors of all services."""
    lines = [
        line
        for file in (folder / "log").glob("*.log")
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    loud = [str(event) for event in events if event["level"] not in ("debug", "info")]
    known = ("rebuilding indices from scratch", "list of nodes does not contain the local node [")
    # RabbitMQ's words for its first start, the latter those of version 4
    servers = re.compile(r" (WARNING|ERROR|FATAL|PANIC): |\[(warning|error|critical)\]")
    return loud + [line for line in lines if servers.search(line) and not any(words in line for words in known)]
