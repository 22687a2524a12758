"""The main forms of names, ids and bounces as programs really write them: router, mailboxes and dry run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from typer.testing import CliRunner

from services.admin.cli.app import app
from shared.db.database import Database
from tests.company import SUPPORT, apply, external, local, mailbox_of
from tests.correspondence import SENT, fetch, submit

PEOPLE = {
    name: f"p{number}@local.com"
    for number, name in enumerate(
        ["Alex", "Jim", "Smith, Alex", "O'Brien", "髙橋", "アレックス", "王小明", "Иван", "André"]
    )
}
ALL = set(PEOPLE)
ID = "=?utf-8?q?=3Cours?=\r\n =?utf-8?q?=40local=2Ecom=3E?="
MAILS: list[tuple[list[str | bytes], set[str], int]] = [
    # words without an address
    ([f"To: Smith, Alex <{SUPPORT}>"], {"Smith, Alex"}, 1),
    ([f"To: b@x.example; Smith; Alex <{SUPPORT}>"], {"Smith, Alex"}, 1),
    ([f'To: "Jones", Jim <{SUPPORT}>'], ALL, 5),
    ([f"To: =?utf-8?q?Jones?=, =?utf-8?q?Jim?= <{SUPPORT}>"], ALL, 5),
    ([f"To: Jones\\, Jim <{SUPPORT}>"], ALL, 5),
    ([f'To: "Jones, Jim <{SUPPORT}>'], ALL, 5),
    ([f"Cc: Jones; Jim <{SUPPORT}>"], ALL, 5),
    ([f'To: Team: "Jim" <{SUPPORT}>;'], {"Jim"}, 1),
    # character sets
    ([f"To: =?ISO-2022-JP?B?GyRCfGI2NhsoQg==?= <{SUPPORT}>"], {"髙橋"}, 1),
    ([f"To: =?cp51932?B?/OK2tg==?= <{SUPPORT}>"], {"髙橋"}, 1),
    ([f"To: =?cp50221?Q?=1B(I1Z/8=3D=1B(B?= <{SUPPORT}>"], {"アレックス"}, 1),
    ([f"To: =?GB_2312-80?B?zfXQocP3?= <{SUPPORT}>"], {"王小明"}, 1),
    ([f"To: =?win-1251?Q?=C8=E2=E0=ED?= <{SUPPORT}>"], {"Иван"}, 1),
    ([f"To: =?x-nothing?Q?Jim?= <{SUPPORT}>"], {"Jim"}, 1),
    ([b"To: Andr\xe9 <" + SUPPORT.encode() + b">"], {"André"}, 1),
    (
        ["Content-Type: text/plain; charset=cp932", b"To: " + "髙橋".encode("cp932") + f" <{SUPPORT}>".encode()],
        {"髙橋"},
        1,
    ),
    # names
    ([f"To: =?utf-8?Q?O=E2=80=99Brien?= <{SUPPORT}>"], {"O'Brien"}, 1),
    ([f'To: "Alex ({SUPPORT})" <{SUPPORT}>'], {"Alex"}, 1),
    # a byte order mark, and ids
    ([f"\ufeffTo: Jim <{SUPPORT}>"], {"Jim"}, 1),
    ([f"To: {SUPPORT}", f"In-Reply-To: {ID}"], {"Alex"}, 3),
    ([f"To: {SUPPORT}", f"References: {ID}"], {"Alex"}, 3),
    # bounces in plain text
    ([f"To: {SUPPORT}", "Return-Path: <MAILER-DAEMON>", "", f"Message-ID: {ID}"], {"Alex"}, 4),
    ([f"To: {SUPPORT}", "Return-Path: <#@[]>", "", "> Message-ID: <ours@local.com>"], {"Alex"}, 4),
    ([f"To: {SUPPORT}", "From: MAILER-DAEMON@x.example", "", "your mail <ours@local.com> failed"], {"Alex"}, 4),
    (["\ufeffReturn-Path: <>", f"To: {SUPPORT}", "", "Message-ID: <ours@local.com>"], {"Alex"}, 4),
    ([f"To: {SUPPORT}", "From: anna@x.example", "", "Message-ID: <ours@local.com>"], ALL, 5),
]


def written(number: int, lines: list[str | bytes]) -> bytes:
    octets = [line.encode() if isinstance(line, str) else line for line in lines]
    body = octets.index(b"") if b"" in octets else len(octets)
    octets[body:body] = [b"Subject: %d" % number]
    return b"\r\n".join([*octets, *([] if body < len(lines) else [b""]), b"end", b""])


async def test_mail_reaches_those_whom_its_writer_means(database: Database, database_url: str, tmp_path: Path) -> None:
    # given people of these names, and a mail that Alex sent
    accounts = [local(name, SUPPORT, address=address) for name, address in PEOPLE.items()]
    await apply(database, {"external_accounts": [external(SUPPORT)], "local_accounts": accounts})
    await submit(database, "Alex", SENT)
    mails = [written(number, lines) for number, (lines, _, _) in enumerate(MAILS)]
    # when the mails arrive
    await fetch(database, *mails)
    # then each has the right readers
    mailboxes = {name: await mailbox_of(database, address) for name, address in PEOPLE.items()}
    got = [{name for name in PEOPLE if mail in mailboxes[name]} for mail in mails]
    assert got == [people for _, people, _ in MAILS]
    # and the dry run says the same
    for number, (_, people, rule) in enumerate(MAILS):
        file = tmp_path / f"{number}.eml"
        file.write_bytes(mails[number])
        command = ["route", str(file), "--external", SUPPORT, "--json"]
        where = {"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_DATA": str(tmp_path)}
        said = json.loads((await asyncio.to_thread(CliRunner(env=where).invoke, app, command)).stdout)
        assert (said["rule"], set(said["recipients"])) == (rule, {PEOPLE[name] for name in people}), MAILS[number]
