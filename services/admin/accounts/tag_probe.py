"""The probe mail for reply tags: whether the provider delivers mail to the account's address with a tag behind ``+``.

The mail is sent through the account's SMTP server to its own address with a tag, and the router recognises it when it
has been fetched. Without that proof reply tags stay off: if the provider refused such addresses, answers would be lost.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from email.utils import format_datetime
from typing import Any, Final

from services.admin.access import audit
from services.admin.accounts.errors import AccountProblem
from services.admin.accounts.maildrop_check import SECONDS, credential_for
from services.admin.context import AdminContext
from shared.db.database import Connection
from shared.errors import Permanent, Temporary
from shared.languages.stored_texts import shown
from shared.languages.translation import gettext, marked
from shared.languages.values import format_moment
from shared.mime.addresses import ascii_address
from shared.mime.reply_tags import new_probe_id, new_probe_tag, tagged_address
from shared.model import External
from shared.net.dial import host_port
from shared.provider.smtp_client import START_DATA, Reply
from shared.provider.smtp_connect import connect
from shared.store import polls, reply_tags
from shared.store.reply_tags import ProbeResult, TagProbe

NEEDS_PROBE = marked("can be switched on after a probe mail has come back to the address with a tag; send one first")
"""Why an account gets no reply tags yet."""
OTHER_MAILBOX = (
    "the account gets another mailbox, which may not deliver mail to an address with a tag; switch it off, and send a "
    "probe mail later"
)
"""Why an account that has reply tags cannot be pointed at another mailbox."""
WAIT_SECONDS = 1.0
"""Interval at which ``wait_for_result`` asks: seconds."""
_TEXT = (
    "mailgroup has sent this mail to itself, to find out whether this mailbox gets mail to its address with a tag.\r\n"
    "It is put into nobody's mailbox.\r\n"
)


_RESULTS: Final = {
    "": marked("The probe mail of %(time)s has not come back yet"),
    "arrived": marked("The probe mail of %(time)s came back: the provider delivers mail to the address with a tag"),
    "untagged": marked("The probe mail of %(time)s came back without its tag, so a tag in answers would be lost"),
    "refused": marked(
        "The probe mail of %(time)s was refused: the provider delivers no mail to the address with a tag%(reply)s"
    ),
    "failed": marked("The probe mail of %(time)s failed%(reply)s"),
}
"""What became of a probe mail, by its result; "" while there is none."""


async def send_probe(system: AdminContext, external: External, who: str) -> TagProbe:
    """Send a probe mail, and have the account polled. The result of the probe mail before is replaced.

    :return: the probe; its result is ``failed`` or ``refused`` if the mail did not leave.
    :raises Permanent: the address is too long for a tag, or the account is disabled.
    """
    tag, address = new_probe_tag(), ascii_address(external.address)
    to = tagged_address(address, tag)
    if to is None:
        raise Permanent(f"{external.address}: the part before the @ is too long for a tag (64 octets)")
    if not external.enabled:
        raise Permanent(f"{external.address}: the account is disabled, so the probe mail would not be fetched")
    message_id = new_probe_id(address.rpartition("@")[2])
    async with system.database.transaction() as connection:
        await reply_tags.ensure_key(connection)
        await reply_tags.record_probe(connection, external.id, message_id, tag)
        await audit.record_change(connection, who, "sent probe mail for reply tags", external.address)
    result, reply = await _send(system, external, to, message_id)
    async with system.database.transaction() as connection:
        if result is not None:
            await reply_tags.record_results(connection, [(external.id, message_id, result)], reply)
        await polls.poll_now(connection, external.id)
        probe = await reply_tags.load_probe(connection, external.id)
    assert probe is not None, "it is recorded above, and only removed with the account"
    return probe


async def wait_for_result(system: AdminContext, external_id: int, seconds: float) -> TagProbe | None:
    """Return the latest probe of an account when its result is known, or as it is after this time."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while True:
        async with system.database.transaction() as connection:
            probe = await reply_tags.load_probe(connection, external_id)
        if probe is None or probe.result is not None or loop.time() >= ends:
            return probe
        await asyncio.sleep(min(WAIT_SECONDS, max(0.0, ends - loop.time())))


async def _send(system: AdminContext, external: External, to: str, message_id: str) -> tuple[ProbeResult | None, str]:
    """Send the mail. :return: why it did not leave; (None, '') if the server has accepted it, or may have."""
    sender = ascii_address(external.address)
    try:
        credential = await credential_for(system, external)
        client = await connect(
            external, credential, system.settings.allow_private_upstream, SECONDS, ehlo_name=system.settings.ehlo_name
        )
    except (Temporary, Permanent, ValueError) as error:
        return "failed", str(error)
    where = host_port(external.smtp)
    try:
        for line in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{to}>", "DATA"):
            reply = await client.command(line.encode(), SECONDS)
            if not reply.accepted and reply.code != START_DATA:
                await client.quit()
                return _refusal(reply, where, of_recipient=line.startswith("RCPT"))
        opened = await client.send_content(_content(external.address, to, message_id))
        client.send_final_dot(opened)
        reply = await client.final_reply(opened)
        await client.quit()
    except Temporary as error:
        return "failed", str(error)
    finally:
        client.close()
    return (None, "") if reply.accepted else _refusal(reply, where, of_recipient=True)


def _refusal(reply: Reply, where: str, *, of_recipient: bool) -> tuple[ProbeResult, str]:
    """Return the result of a refused mail: a permanent refusal of the recipient is an answer, any other is none."""
    return ("refused" if of_recipient and reply.refused else "failed"), f"{where}: {reply}"


async def _content(sender: str, to: str, message_id: str) -> AsyncIterator[bytes]:
    now = datetime.datetime.now(datetime.UTC)
    yield (
        f"From: <{ascii_address(sender)}>\r\nTo: <{to}>\r\nSubject: mailgroup: mail to an address with a tag\r\n"
        f"Date: {format_datetime(now)}\r\nMessage-ID: <{message_id}>\r\nAuto-Submitted: auto-generated\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n{_TEXT}"
    ).encode()


async def find_problem(
    connection: Connection, old: External | None, new: External, other_maildrop: bool
) -> AccountProblem | None:
    """Return why a changed account may have no reply tags; None if it may, or has none.

    :param old: as it is stored; None for a new account. :param other_maildrop: the change leads to another mailbox.
    """
    if not new.reply_tag:
        return None
    words = NEEDS_PROBE
    if old is not None and other_maildrop:
        words = OTHER_MAILBOX
    elif old is not None:
        probe = await reply_tags.load_probe(connection, old.id)
        if old.reply_tag or (probe is not None and probe.result == "arrived"):
            return None
        words = f"{gettext(NEEDS_PROBE)}. {describe_probe(probe)}" if probe is not None else NEEDS_PROBE
    advice = f"; 'external probe-tag {new.address}' does that" if words == NEEDS_PROBE else ""
    return AccountProblem(
        words + advice, "external", address=new.address, field=("reply_tag",), value="true", on_page=words
    )


def describe_probe(probe: TagProbe | None) -> str:
    """Return what became of the latest probe mail: a sentence without full stop. Pure."""
    if probe is None:
        return gettext("No probe mail was sent yet")
    reply = f": {shown(probe.reply)}" if probe.reply else ""
    text = _RESULTS[probe.result or ""]
    return gettext(text, time=format_moment(probe.sent_at), reply=reply)


def _iso(at: datetime.datetime) -> str:
    return at.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def probe_fields(probe: TagProbe | None) -> dict[str, Any]:
    """Return a probe as in the JSON of command and REST API."""
    if probe is None:
        return {"sent_at": None, "result": None, "result_at": None, "reply": "", "text": describe_probe(None)}
    return {
        "sent_at": _iso(probe.sent_at),
        "result": probe.result,
        "result_at": probe.result_at and _iso(probe.result_at),
        "reply": probe.reply,
        "text": describe_probe(probe),
    }
