"""``python -m deploy.demo_provider ACCOUNTS.yaml [ADDRESS ...]``: POP3 on 1110, SMTP on 1025, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from ruamel.yaml import YAML

from deploy.demo_provider import smtp
from deploy.demo_provider.maildrops import Maildrops
from deploy.demo_provider.pop3 import DemoPop3Session

POP3_PORT, SMTP_PORT = 1110, 1025
PASSWORD = "demo-secret"


async def serve(passwords: dict[str, str]) -> None:
    """Serve until a signal ends the process. :param passwords: by address."""
    loop, maildrops, stopping = asyncio.get_running_loop(), Maildrops(passwords), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    pop3 = await asyncio.start_server(lambda *ends: DemoPop3Session(maildrops).serve(*ends), "0.0.0.0", POP3_PORT)
    relay = await loop.create_server(lambda: smtp.server(maildrops), "0.0.0.0", SMTP_PORT)
    print(f"mailboxes: {', '.join(passwords)}", flush=True)
    await stopping.wait()
    pop3.close()
    relay.close()


def main(words: list[str]) -> str | None:
    """Run the stand-in. :return: the error, or None."""
    if not words:
        return "usage: python -m deploy.demo_provider ACCOUNTS.yaml [ADDRESS ...]"
    accounts = YAML(typ="safe").load(Path(words[0]).read_text(encoding="utf-8"))
    passwords = {account["address"]: account["password"] for account in accounts["external_accounts"]}
    asyncio.run(serve(passwords | dict.fromkeys(words[1:], PASSWORD)))
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
