"""shared/provider/pop3_client.py: the steps of a session."""

from __future__ import annotations

import pytest

from shared.net.dial import TlsError
from shared.provider.credentials import Credential
from shared.provider.pop3_client import open_session
from shared.provider.session_errors import ServerBusy
from tests.scripted_pop3 import Answer, ScriptedPop3, say

MAIL = b"Subject: one\r\n\r\nbody\r\n"


async def test_a_greeting_that_refuses_is_busy() -> None:
    script = ScriptedPop3(answers={"greeting": say(b"-ERR maintenance\r\n")})
    async with script.running():
        with pytest.raises(ServerBusy, match="maintenance"):
            async with open_session(script.server(), True):
                pass


@pytest.mark.parametrize("answers", [{}, {"STLS": say(b"-ERR no\r\n")}])
@pytest.mark.parametrize("capabilities", [("UIDL",), None, ("UIDL", "STLS")])
async def test_starttls_is_never_downgraded(answers: dict[str, Answer], capabilities: tuple[str, ...] | None) -> None:
    script = ScriptedPop3(capabilities=capabilities, answers=answers)
    async with script.running():
        with pytest.raises(TlsError, match="nothing is sent in clear text"):
            async with open_session(script.server("starttls"), True):
                pass
    assert not [line for line in script.commands if line.startswith(("USER", "PASS"))]


async def test_data_injected_before_tls_is_refused() -> None:
    script = ScriptedPop3(capabilities=("STLS",), answers={"STLS": say(b"+OK\r\n+OK injected\r\n")})
    async with script.running():
        with pytest.raises(TlsError, match="between STARTTLS and TLS"):
            async with open_session(script.server("starttls"), True):
                pass


async def test_deletions_take_effect_with_quit() -> None:
    script = ScriptedPop3({f"u{n}": MAIL for n in range(250)}, answers={"DELE 3": say(b"-ERR no\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        assert await client.delete(range(1, 250)) == ([3], "DELE")
        assert await client.quit()
    assert set(script.mails) == {"u2", "u249"}


async def test_login_delay_is_read_from_the_capabilities() -> None:
    script = ScriptedPop3(capabilities=("PIPELINING", "LOGIN-DELAY 900 USER"))
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        assert client.capabilities.login_delay == 900
