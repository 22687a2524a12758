"""Opens the session with an account's maildrop, by the protocol that the account has."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from shared.model import External
from shared.net.dial import host_port
from shared.provider.maildrop import MaildropSession
from shared.provider.pop3_client import open_session
from shared.provider.session_errors import ProtocolError
from shared.settings import PrivateHosts


def open_maildrop(account: External, allow_private: PrivateHosts) -> AbstractAsyncContextManager[MaildropSession]:
    """Open a session that ends with the block; it is not logged in.

    :raises Temporary, Permanent: with a ``kind``, as ``pop3_client.open_session``.
    """
    if account.pop3 is None:
        raise ProtocolError(f"{host_port(account.incoming)}: mail is not fetched by IMAP yet")
    return open_session(account.pop3, allow_private)
