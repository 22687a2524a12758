"""A pool of SMTP connections to relays, logged in with each account's credentials and kept for the next mail.

In all functions the first relay of ``external`` is the one that is meant.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from shared.errors import Permanent
from shared.model import External
from shared.net.dial import AddressNotAllowed
from shared.provider import smtp_connect
from shared.provider.credentials import Credential, Credentials
from shared.provider.oauth import IssuerUnavailable, Unauthorized
from shared.provider.smtp_client import SmtpClient
from shared.provider.smtp_login import AuthFailed, ServerUnavailable
from shared.settings import PrivateHosts

IDLE_SECONDS = 30.0
"""Limits how long an idle connection is kept for the next mail: seconds; servers must wait 5 minutes (RFC 5321
4.5.3.2.7), but an idle connection counts in a provider's limit."""


class ConnectionPool:
    """Keeps idle connections by account, and opens new ones."""

    def __init__(self, credentials: Credentials, allow_private: PrivateHosts, ehlo_name: str | None = None) -> None:
        """:param ehlo_name: the setting of this name."""
        self._credentials = credentials
        self._allow_private = allow_private
        self._ehlo_name = ehlo_name
        self._idle: dict[int, list[tuple[SmtpClient, External, float]]] = {}

    async def connect(self, external: External) -> SmtpClient:
        """Open a connection and log in. :raises: as ``smtp_connect.connect``."""
        credential = await self._credential(external)
        open_connection = partial(smtp_connect.connect, allow_private=self._allow_private, ehlo_name=self._ehlo_name)
        try:
            return await open_connection(external, credential)
        except AuthFailed:
            if not credential.token:
                raise
            self._credentials.discard_token(
                external, credential
            )  # the provider may have revoked the token before it expired
            return await open_connection(external, await self._credential(external))

    async def _credential(self, external: External) -> Credential:
        """:raises AuthFailed: there is nothing to log in with. :raises ServerUnavailable: no access token now."""
        if not external.relay.auth:
            return Credential(external.login, "")
        try:
            return await self._credentials.credential_for_relay(external)
        except AddressNotAllowed:
            raise
        except (Permanent, Unauthorized) as error:
            raise AuthFailed(str(error)) from error
        except IssuerUnavailable as error:
            raise ServerUnavailable(str(error)) from error

    def take_idle(self, external: External) -> SmtpClient | None:
        """Remove and return an idle connection that fits the account as it is now, None if there is none."""
        idle = self._idle.get(external.id, [])
        for entry in reversed([each for each in idle if each[1].relay.place == external.relay.place]):
            idle.remove(entry)
            client, opened_for, _ = entry
            if client.alive and same_server(external, opened_for):
                return client
            client.close()
        return None

    def keep(self, client: SmtpClient, external: External) -> None:
        """Keep a connection for the next mail."""
        if client.alive:
            self._idle.setdefault(external.id, []).append((client, external, time.monotonic()))

    async def close_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Send QUIT on connections that were idle for this time, and close them."""
        now = time.monotonic()
        old = []
        for external_id, idle in list(self._idle.items()):
            old += [client for client, _, since in idle if now - since >= seconds or not client.alive]
            self._idle[external_id] = [entry for entry in idle if entry[0] not in old]
            if not self._idle[external_id]:
                del self._idle[external_id]
        await asyncio.gather(*(client.quit() for client in old))


def same_server(one: External, other: External) -> bool:
    """Return whether a connection opened for one account may be used for the other."""
    return _identity(one) == _identity(other)


def _identity(external: External) -> tuple[object, ...]:
    relay = external.relay
    own = (
        (relay.login, relay.password, relay.tokens_of)
        if relay.login is not None
        else (external.login, external.password)
    )
    return relay.server, relay.auth, own, external.oauth, external.address
