"""The commands by the states of a session in which they are allowed (RFC 3501 section 6). APPEND is in session.py."""

from __future__ import annotations

from services.imap_out import fetch, idle, login, mailboxes, search_command, selected, store, transfer
from services.imap_out.context import RunCommand as RunCommand

ANY_STATE: dict[str, RunCommand] = {
    "CAPABILITY": login.run_capability,
    "ID": login.run_id,
    "LOGOUT": login.run_logout,
    "NOOP": selected.run_noop,
}
NOT_AUTHENTICATED: dict[str, RunCommand] = {
    "STARTTLS": login.run_start_tls,
    "LOGIN": login.run_login,
    "AUTHENTICATE": login.run_authenticate,
}
AUTHENTICATED: dict[str, RunCommand] = {
    "ENABLE": login.run_enable,
    "SELECT": selected.run_select,
    "EXAMINE": selected.run_select,
    "IDLE": idle.run_idle,
    "LIST": mailboxes.run_list,
    "LSUB": mailboxes.run_lsub,
    "STATUS": mailboxes.run_status,
    "NAMESPACE": mailboxes.run_namespace,
    "CREATE": mailboxes.run_create,
    "DELETE": mailboxes.run_delete,
    "RENAME": mailboxes.run_rename,
    "SUBSCRIBE": mailboxes.run_subscribe,
    "UNSUBSCRIBE": mailboxes.run_unsubscribe,
    "GETQUOTA": mailboxes.run_get_quota,
    "GETQUOTAROOT": mailboxes.run_get_quota_root,
    "SETQUOTA": mailboxes.run_set_quota,
}
SELECTED: dict[str, RunCommand] = {
    "CHECK": selected.run_noop,
    "CLOSE": selected.run_close,
    "UNSELECT": selected.run_unselect,
    "EXPUNGE": transfer.run_expunge,
    "FETCH": fetch.run_fetch,
    "STORE": store.run_store,
    "COPY": transfer.run_copy,
    "MOVE": transfer.run_move,
    "SEARCH": search_command.run_search,
    "SORT": search_command.run_sort,
    "THREAD": search_command.run_thread,
}
BY_NUMBER = frozenset(("FETCH", "STORE", "SEARCH", "SORT", "THREAD"))
"""Commands whose message numbers must not change while they are answered: no EXPUNGE follows (RFC 3501 section 7.4.1,
RFC 5256 section 3)."""
ASKING = frozenset(("NOOP", "CHECK"))
"""Commands by which clients ask what has changed (RFC 3501 sections 6.1.2 and 6.4.1): the database is asked. After the
other ones the client hears what this process knows (current_folders.py)."""
WITHOUT_UPDATES = frozenset(("SELECT", "EXAMINE", "IDLE", "EXPUNGE", "MOVE", "LOGOUT"))
"""Commands that no further updates follow: they have sent them."""
