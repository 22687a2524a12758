"""Opens the session with an account's maildrop, by the protocol that the account has."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from shared.model import External
from shared.provider import imap_client, pop3_client
from shared.provider.maildrop import MaildropSession
from shared.settings import PrivateHosts


def open_maildrop(account: External, allow_private: PrivateHosts) -> AbstractAsyncContextManager[MaildropSession]:
    """Open a session that ends with the block; it is not logged in.

    :raises Temporary, Permanent: with a ``kind``, as ``open_session`` of both clients.
    """
    if account.imap is not None:
        return imap_client.open_session(account.imap, allow_private, folders=account.imap.folders)
    return pop3_client.open_session(account.incoming, allow_private)
