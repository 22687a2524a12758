"""shared/mime/dsn_options.py: the notices that the author of a mail requested."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mime import dsn_options


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, {"failed", "delayed"}),
        ("ORCPT=rfc822;a@b", {"failed", "delayed"}),
        ("NOTIFY=NEVER", set()),
        ("NOTIFY=NEVER ORCPT=rfc822;a@b", set()),
        ("NOTIFY=SUCCESS", {"delivered", "relayed"}),
        ("NOTIFY=FAILURE", {"failed"}),
        ("ORCPT=rfc822;NOTIFY NOTIFY=DELAY,SUCCESS", {"delayed", "delivered", "relayed"}),
    ],
)
def test_an_author_gets_the_notices_that_were_requested(asked: str | None, told: set[str]) -> None:
    actions: list[dsn_options.Action] = ["failed", "delayed", "delivered", "relayed"]
    assert {action for action in actions if dsn_options.is_notice_wanted(asked, action)} == told


def test_stored_dsn_parameters_are_read_back() -> None:
    asked = "RET=FULL ENVID=QQ+3D314159"
    assert dsn_options.is_whole_wanted(asked) and dsn_options.envelope_id(asked) == "QQ=314159"
    assert (
        not dsn_options.is_whole_wanted("RET=HDRS")
        and not dsn_options.is_whole_wanted(None)
        and dsn_options.envelope_id(None) is None
    )
    assert dsn_options.original_recipient("NOTIFY=DELAY ORCPT=rfc822;a+2Bb@c.d") == "rfc822;a+b@c.d"
    assert dsn_options.original_recipient("ORCPT=utf-8;j\u00f6rg@c.d") == "utf-8;j\u00f6rg@c.d"
    assert dsn_options.original_recipient(None) is None


def test_octets_that_would_start_a_line_are_not_shown() -> None:
    assert dsn_options.envelope_id("ENVID=a+0D+0ABcc:+20x") == "a??Bcc: x"


def test_an_address_beyond_ascii_goes_only_to_servers_that_accept_it() -> None:
    asked = "NOTIFY=SUCCESS ORCPT=utf-8;j\u00f6rg@c.d"
    assert dsn_options.format_for_server(asked, True) == " NOTIFY=SUCCESS ORCPT=utf-8;j\u00f6rg@c.d".encode()
    assert dsn_options.format_for_server(asked, False) == b" NOTIFY=SUCCESS"
    assert (
        dsn_options.format_for_server("ORCPT=utf-8;j\u00f6rg@c.d", False)
        == dsn_options.format_for_server(None, True)
        == b""
    )


@given(st.text(max_size=120))
def test_a_stored_value_is_one_word_and_is_read_back_unchanged(value: str) -> None:
    for name, read in (dsn_options.OF_MAIL | dsn_options.OF_RECIPIENT).items():
        kept = read(value)
        if kept is not None:
            assert kept.isprintable() and " " not in kept and read(kept) == kept
            assert (
                dsn_options.format_for_server(dsn_options.format_parameters([(name, kept)]), True)
                == f" {name}={kept}".encode()
            )
