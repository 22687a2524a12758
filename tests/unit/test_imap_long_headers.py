"""Long headers are read beside the event loop, which serves the other sessions meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from services.imap_out import fetch_texts, search_command
from tests.fuzz import imap_sessions
from tests.fuzz.imap_sessions import ImapDoor, connected
from tests.fuzz.sessions import Wire
from tests.polling import until


async def test_long_headers_are_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    on_loop: list[bool] = []

    def recording(read: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            on_loop.append(threading.current_thread() is threading.main_thread())
            return read(*arguments)

        return run

    # given a mail with a long header, and one with a short header
    monkeypatch.setitem(imap_sessions._MAILS, 1, b"Subject: x\r\nReferences:" + b" <a@b>" * 3_000 + b"\r\n\r\n")
    for module, name in (
        (search_command, "read_thread_facts"),
        (search_command, "read_sort_facts"),
        (fetch_texts, "filter_header"),
    ):
        monkeypatch.setattr(module, name, recording(getattr(module, name)))
    door, wire = ImapDoor(), Wire()
    connection = connected(door, wire)
    # when they are put into threads, sorted, and some of their fields are fetched
    connection.data_received(imap_sessions._LOGIN + b"b SELECT INBOX\r\nc THREAD REFERENCES UTF-8 ALL\r\n")
    connection.data_received(b"d SORT (SUBJECT) UTF-8 ALL\r\ne FETCH 1:2 BODY.PEEK[HEADER.FIELDS (SUBJECT)]\r\n")
    await until(lambda: b"\r\ne OK" in wire.out)
    # then the long one is read in a thread
    assert on_loop == [False, True, False, True, False, True]
    connection.connection_lost(None)
