"""shared/provider/pop3_listing.py: lists that are incomplete or refused."""

from __future__ import annotations

import pytest

from shared.provider.credentials import Credential
from shared.provider.pop3_client import open_session
from shared.provider.session_errors import ProtocolError
from tests.scripted_pop3 import ScriptedPop3, say

MAIL = b"Subject: one\r\n\r\nbody\r\n"


async def test_a_list_that_stat_contradicts_is_not_complete() -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"STAT": say(b"+OK 5 500\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        assert not (await client.fetch_list()).complete


async def test_a_server_without_uidl_is_detected() -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"UIDL": say(b"-ERR what\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ProtocolError, match="UIDL"):
            await client.fetch_list()
