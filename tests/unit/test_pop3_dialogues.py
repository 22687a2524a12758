"""Every dialogue with the POP3 server, on the event loop of the standard library and on uvloop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dialogues.pop3.stand import on_loop, play, stand

FOLDER = Path(__file__).parents[1] / "dialogues" / "pop3"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_dialogue_goes_as_written(script: Path, loop: str, tmp_path: Path) -> None:
    text = script.read_text(encoding="utf-8")

    async def dialogue() -> None:
        async with stand(tmp_path, allow_plaintext_auth="no" if text.startswith("no-passwords") else "auto") as server:
            await play(server, text)

    on_loop(loop, dialogue)
