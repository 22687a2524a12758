"""Connections to providers: made with the account's credentials, kept for a while for the next mail."""

from __future__ import annotations

import asyncio
import time

from shared.errors import Permanent
from shared.model import External
from shared.net.dial import AddressNotAllowed
from shared.provider import smtp_connect
from shared.provider.credentials import Credential, Credentials
from shared.provider.oauth import IssuerUnavailable, Unauthorized
from shared.provider.smtp_client import SmtpClient
from shared.provider.smtp_connect import AuthFailed, ServerUnavailable
from shared.settings import PrivateHosts

IDLE_SECONDS = 30.0
"""A connection is kept so long for the next mail."""


class ConnectionPool:
    """Those that nobody uses now, by account; and the way to new ones."""

    def __init__(self, credentials: Credentials, allow_private: PrivateHosts) -> None:
        self._credentials = credentials
        self._allow_private = allow_private
        self._idle: dict[int, list[tuple[SmtpClient, External, float]]] = {}

    async def connect(self, external: External) -> SmtpClient:
        """A new connection, logged in. :raises: as ``smtp_client.connect``."""
        credential = await self._credential(external)
        try:
            return await smtp_connect.connect(external, credential, self._allow_private)
        except AuthFailed:
            if not credential.token:
                raise
            self._credentials.discard_token(external)  # the provider may have ended a token before its time
            return await smtp_connect.connect(external, await self._credential(external), self._allow_private)

    async def _credential(self, external: External) -> Credential:
        """:raises LoginRefused: nothing to log in with. :raises Unwilling: no access token now."""
        if not external.smtp_auth:
            return Credential(external.login, "")
        try:
            return await self._credentials.credential_for(external)
        except AddressNotAllowed:
            raise
        except (Permanent, Unauthorized) as error:
            raise AuthFailed(str(error)) from error
        except IssuerUnavailable as error:
            raise ServerUnavailable(str(error)) from error

    def take_idle(self, external: External) -> SmtpClient | None:
        """An idle connection of the account as it is now, if there is one."""
        waiting = self._idle.get(external.id, [])
        while waiting:
            client, known, _ = waiting.pop()
            if client.alive and same_server(external, known):
                return client
            client.close()
        return None

    def keep(self, client: SmtpClient, external: External) -> None:
        """Keep a connection for the next mail."""
        if client.alive:
            self._idle.setdefault(external.id, []).append((client, external, time.monotonic()))

    async def close_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Say goodbye on connections that nobody has used for so long."""
        now = time.monotonic()
        old = []
        for external_id, waiting in list(self._idle.items()):
            old += [client for client, _, since in waiting if now - since >= seconds or not client.alive]
            self._idle[external_id] = [entry for entry in waiting if entry[0] not in old]
            if not self._idle[external_id]:
                del self._idle[external_id]
        await asyncio.gather(*(client.quit() for client in old))


def same_server(one: External, other: External) -> bool:
    """Whether a connection made for one may be used for the other."""
    return (one.smtp, one.smtp_auth, one.login, one.password, one.oauth, one.address) == (
        other.smtp,
        other.smtp_auth,
        other.login,
        other.password,
        other.oauth,
        other.address,
    )
