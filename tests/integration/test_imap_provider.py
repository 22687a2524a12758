"""shared/provider/imap_client.py with a real Dovecot."""

from __future__ import annotations

import asyncio
import imaplib
import itertools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from shared.imap.names import encode_utf7, quoted
from shared.model import Server, Tls
from shared.net.dial import CertificateRefused
from shared.provider import imap_deletion
from shared.provider.credentials import Credential
from shared.provider.imap_client import ImapClient, open_session
from shared.provider.retrieval import MailRequest
from shared.provider.session_errors import LoginRefused
from tests.fetcher_harness import mail

LIMIT = 10_000_000
_names = itertools.count()


@pytest.fixture
def box(provider: DemoProvider) -> str:
    """A fresh mailbox at the provider, password 'secret'."""
    address = f"box{next(_names)}@imap.test"
    provider.add_mailbox(address, "secret")
    return address


def server(provider: DemoProvider, tls: Tls = "none") -> Server:
    port = provider.imaps_port if tls == "implicit" else provider.imap_port
    return Server("127.0.0.1", port, tls, None if tls == "none" else provider.fingerprint)


@asynccontextmanager
async def session(provider: DemoProvider, box: str, tls: Tls = "none", **options: Any) -> AsyncIterator[ImapClient]:
    async with open_session(server(provider, tls), True, **options) as client:
        await client.login(Credential(box, "secret"))
        yield client


async def bodies(client: ImapClient) -> list[bytes]:
    """Return the mails of all watched folders, each of its announced size."""
    numbers = [number for number, _ in (await client.fetch_list()).mails]
    sizes = await client.fetch_sizes(numbers)
    requests = [MailRequest(number, sizes[number]) for number in numbers]
    got = [one async for one in client.retrieve(requests, LIMIT)]
    assert [one.octets for one in got] == [sizes[number] for number in numbers]
    return [bytes(one.body or b"") for one in got]


def other_client(provider: DemoProvider, box: str) -> imaplib.IMAP4:
    """Log in with another client."""
    client = imaplib.IMAP4("127.0.0.1", provider.imap_port)
    client.login(box, "secret")
    return client


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_mails_are_read_in_each_tls_mode(provider: DemoProvider, box: str, tls: Tls) -> None:
    mails = [mail("one", ".\r\n..dots"), mail("large", "x" * 70 + "\r\n" + ("y" * 998 + "\r\n") * 3000), mail("three")]
    for one in mails:
        provider.put(box, one)
    steps: list[str] = []
    options = {"progress": lambda step, _: steps.append(step)}
    async with session(provider, box, tls, **options) as client:
        assert await bodies(client) == mails
        headers = [bytes(one.body or b"") async for one in client.fetch_headers([1, 2, 3], LIMIT)]
        assert headers == [one.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for one in mails]
        assert await client.quit()
    assert steps == ["resolved", "connected", *(["encrypted"] if tls != "none" else []), "answered"]


async def test_nothing_is_marked_as_read(provider: DemoProvider, box: str) -> None:
    provider.put(box, mail("one"))
    async with session(provider, box) as client:
        assert await bodies(client) == [mail("one")]
        assert await client.quit()
    other = other_client(provider, box)
    other.select("INBOX", readonly=True)
    _, [flags] = other.fetch("1", "(FLAGS)")
    assert isinstance(flags, bytes) and b"Seen" not in flags and b"Recent" in flags
    other.logout()


async def test_a_wrong_password_and_an_unknown_certificate_are_refused(provider: DemoProvider, box: str) -> None:
    async with open_session(server(provider), True) as client:
        with pytest.raises(LoginRefused) as caught:
            await client.login(Credential(box, "wrong"))
    assert caught.value.code == "AUTH"
    with pytest.raises(CertificateRefused):
        async with open_session(Server("127.0.0.1", provider.imaps_port, "implicit"), True):
            pass


async def test_keys_are_the_same_in_each_session(provider: DemoProvider, box: str) -> None:
    provider.put(box, mail("one"))
    provider.put(box, mail("two"))
    found = []
    for _ in range(2):
        async with session(provider, box) as client:
            reply = await client.fetch_list_reply()
            listing = await asyncio.to_thread(reply.parse)
            assert listing.complete and client.folders[0].exists == 2
            found.append((reply.digest, listing.mails))
    assert found[0] == found[1]
    provider.put(box, mail("three"))
    async with session(provider, box) as client:
        reply = await client.fetch_list_reply()
        assert reply.digest != found[0][0] and reply.parse().mails[:2] == found[0][1]


async def test_only_our_mails_are_deleted(provider: DemoProvider, box: str) -> None:
    for name in ("one", "two", "three", "four"):
        provider.put(box, mail(name))
    other = other_client(provider, box)
    other.select("INBOX")
    other.store("4", "+FLAGS", r"\Deleted")
    other.logout()
    async with session(provider, box) as client:
        numbers = [number for number, _ in (await client.fetch_list()).mails]
        assert not (await client.delete([numbers[0], numbers[2]])).numbers
        assert len((await client.fetch_list()).mails) == 2
        assert await client.quit()
    assert sorted(provider.mail_of(box)) == sorted([mail("two"), mail("four")])


async def test_deleted_mails_are_moved_to_the_bin_as_at_gmail(
    provider: DemoProvider, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap_deletion, "GMAIL", "UIDPLUS")  # Dovecot is taken for Gmail
    for name in ("one", "two", "three"):
        provider.put(box, mail(name))
    other = other_client(provider, box)
    other.create("Trash")
    async with session(provider, box) as client:
        numbers = [number for number, _ in (await client.fetch_list()).mails]
        assert not (await client.delete([numbers[0], numbers[2]])).numbers
        assert len((await client.fetch_list()).mails) == 1
    assert provider.mail_of(box) == [mail("two")]
    assert other.select("Trash", readonly=True) == ("OK", [b"2"])
    other.logout()


@pytest.mark.parametrize("name", ["Orders", "Entwürfe 2026", 'quotes " and \\', "per*cent%", "R&D", "台北"])
async def test_folders_of_any_name_are_watched(provider: DemoProvider, box: str, name: str) -> None:
    raw = (quoted(encode_utf7(name)) or b"").decode()
    other = other_client(provider, box)
    other.create(raw)
    other.append(raw, "", "", mail("in the folder"))
    other.logout()
    provider.put(box, mail("in the INBOX"))
    async with session(provider, box, folders=("INBOX", name)) as client:
        assert await bodies(client) == [mail("in the INBOX"), mail("in the folder")]
        assert [folder.name for folder in client.folders] == ["INBOX", name]
        listing = await client.fetch_list()
        assert not (await client.delete([listing.mails[1][0]])).numbers
        assert len((await client.fetch_list()).mails) == 1


async def test_marked_folders_are_refused(provider: DemoProvider, box: str) -> None:
    other = other_client(provider, box)
    for name in ("Sent", "Drafts", "Trash"):
        other.create(name)
    other.logout()
    async with session(provider, box, folders=("INBOX", "Sent", "Drafts", "Trash", "Missing")) as client:
        listing = await client.fetch_list()
    assert not listing.complete
    for words in (r"marks it as \sent", r"marks it as \drafts", r"marks it as \trash", "no folder 'Missing'"):
        assert words in listing.problem


async def test_a_folder_made_again_has_other_keys(provider: DemoProvider, box: str) -> None:
    found = []
    other = other_client(provider, box)
    for _ in range(2):
        other.create("Orders")
        other.append("Orders", "", "", mail("one"))
        async with session(provider, box, folders=("Orders",)) as client:
            found += [key for _, key in (await client.fetch_list()).mails]
        other.delete("Orders")
    other.logout()
    assert len(set(found)) == 2 and all(key.startswith("Orders:") for key in found)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_a_mail_wakes_the_session(provider: DemoProvider, box: str, tls: Tls) -> None:
    provider.put(box, mail("one"))
    async with session(provider, box, tls, session_seconds=math.inf) as client:
        assert client.idles
        assert len(await bodies(client)) == 1
        waiting = asyncio.create_task(client.wait_for_news(60))
        await asyncio.sleep(0)
        provider.put(box, mail("two"))
        assert await waiting
        assert await bodies(client) == [mail("one"), mail("two")]
        assert not await client.wait_for_news(0.1)


async def test_a_mail_deleted_meanwhile_is_a_refusal(provider: DemoProvider, box: str) -> None:
    for name in ("one", "two", "three"):
        provider.put(box, mail(name))
    async with session(provider, box) as client:
        numbers = [number for number, _ in (await client.fetch_list()).mails]
        other = other_client(provider, box)
        other.select("INBOX")
        other.store("2", "+FLAGS", r"\Deleted")
        other.expunge()
        other.logout()
        got = [one async for one in client.retrieve([MailRequest(number, 100) for number in numbers], LIMIT)]
    assert [one.body is None for one in got] == [False, True, False]


async def test_many_mails_come_in_order(provider: DemoProvider, box: str) -> None:
    for number in range(300):
        provider.put(box, mail(f"number {number}"))
    async with session(provider, box) as client:
        got = await bodies(client)
        client.fetch_alone()
        assert await bodies(client) == got
    assert sorted(got) == sorted(mail(f"number {number}") for number in range(300))
