"""A provider that replaces our Message-ID: its reply, the answers and notices, through sender and router."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.admin.cli.app import app
from tests.company import SUPPORT
from tests.correspondence import ALEX, JIM, customer_mail, fetch, readers
from tests.scripted_smtp import ScriptedSmtp
from tests.sender_harness import SenderHarness, harness_fixture, provider_fixture

TOKEN = "0100018f0e1d2c3b-aaaa1111-2222-3333-4444-555566667777-000000"
OUTLOOK = "AM0PR04MB1234.ABC@AM0PR04MB1234.eurprd04.prod.outlook.com"


provider = provider_fixture()
harness = harness_fixture()


@pytest.mark.parametrize(
    ("reply", "answered"),
    [
        (f"250 Ok {TOKEN}", f"{TOKEN}@eu-west-1.amazonses.com"),
        (f"250 Ok {TOKEN}", f"{TOKEN}@email.amazonses.com"),
        (f"250 2.0.0 OK <{OUTLOOK}> [Hostname=AM0PR04MB1234.eurprd04.prod.outlook.com]", OUTLOOK),
        ("250 2.0.0 OK: queued as <202611301000.123@smtp-relay.mailin.fr>", "202611301000.123@smtp-relay.mailin.fr"),
    ],
)
async def test_answers_and_notices_to_the_providers_id_reach_the_author(
    harness: SenderHarness, provider: ScriptedSmtp, database_url: str, tmp_path: Path, reply: str, answered: str
) -> None:
    # given a mail of Alex, which its provider gives another id
    provider.always("END", reply)
    await harness.until(await harness.submit("ann@customer.org", message_id="own@local.com"), state="done")
    # when an answer and a notice come back
    answer = customer_mail("answer@x", answers=answered)
    notice = (
        f"Return-Path: <>\r\nFrom: MAILER-DAEMON@x.example\r\nTo: {SUPPORT}\r\nMessage-ID: <notice@x>\r\n\r\n"
        f"Message-ID: <{answered}>\r\n"
    ).encode()
    unknown = customer_mail("other@x", answers=answered.replace("1", "2"))
    await fetch(harness.database, answer, notice, unknown)
    # then Alex has them, and everybody what answers another id
    assert [await readers(harness.database, mail) for mail in (answer, notice, unknown)] == [
        [ALEX],
        [ALEX],
        [ALEX, JIM],
    ]
    # and the dry run says the same
    file = tmp_path / "answer.eml"
    file.write_bytes(answer)
    where = {"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_DATA": str(tmp_path)}
    command = ["route", str(file), "--external", SUPPORT, "--json"]
    done = await asyncio.to_thread(CliRunner(env=where).invoke, app, command)
    assert (json.loads(done.stdout)["recipients"], json.loads(done.stdout)["rule"]) == ([ALEX], 3)
