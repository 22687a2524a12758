"""A certificate of a provider that is not the pinned one: no login, and an alarm that says so at once."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from deploy.machine.certificates import make_authority
from services.admin.monitoring import problems
from services.admin.monitoring.problem_kinds import KINDS
from shared.db.database import Database
from shared.store import relays
from tests.company import SUPPORT
from tests.fetcher_harness import fetching, mail
from tests.scripted_pop3 import ScriptedPop3


def certificate(folder: Path) -> tuple[ssl.SSLContext, str]:
    """A server's context with a certificate of its own, and its fingerprint."""
    _, server = make_authority(["localhost"], [])
    (folder / "server.pem").write_text(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    pem = server[server.index("-----BEGIN CERTIFICATE") :]
    return context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


async def found(database: Database) -> list[tuple[str, str]]:
    async with database.snapshot() as connection:
        facts = await problems.load_facts(connection)
    return [(p.subject, p.text) for p in problems.find_problems(facts) if p.kind == "provider_certificate"]


async def test_a_changed_certificate_gets_no_password_and_is_an_alarm(database_url: str, tmp_path: Path) -> None:
    # given an account whose certificate is pinned
    context, pin = certificate(tmp_path)
    script = ScriptedPop3({"a": mail("one")}, context=context, implicit=True)
    async with script.running(), fetching(database_url) as harness:
        account = await harness.add(SUPPORT, script.port, pop3_tls="implicit", pop3_tls_fingerprint=pin)
        assert (await harness.polled(account)).last_error is None
        assert await found(harness.database) == []
        # when the provider shows another one
        await harness.rows("update external_accounts set pop3_tls_fingerprint = %s", "ab" * 32)
        script.commands.clear()
        state = await harness.poll(account)
        # then nothing is sent, and the alarm names the new one
        assert (state.last_error_kind, script.commands) == ("certificate", [])
        [(subject, said)] = await found(harness.database)
        assert subject == f"{SUPPORT} fetching"
        assert "the certificate is not the pinned one" in said and pin in said
        # until it is trusted
        await harness.rows("update external_accounts set pop3_tls_fingerprint = %s", pin)
        assert (await harness.poll(account)).failures == 0
        assert await found(harness.database) == []
        # and the same holds for sending
        async with harness.database.transaction() as connection:
            await relays.record_failure(connection, account, "certificate", "smtp.x:465: not the pinned one", 60.0)
        assert [subject for subject, _ in await found(harness.database)] == [f"{SUPPORT} relaying"]
        async with harness.database.transaction() as connection:
            await relays.record_success(connection, account)
        assert await found(harness.database) == []
    assert "provider_certificate" in KINDS
