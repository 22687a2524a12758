"""Ids that a provider gives our mail, by the token of its reply (shared/mime/provider_ids.py)."""

from __future__ import annotations

import pytest

from shared.mime.provider_ids import reply_tokens, sent_key
from tests.unit.test_routing import ALEX, EVERYONE, SENT, E, decide, external, mail, outcome, own_copy, people, sent

TOKEN = "0100018f0e1d2c3b-aaaa1111-2222-3333-4444-555566667777-000000"
KNOWN = SENT | sent(TOKEN, ALEX)


@pytest.mark.parametrize(
    "reply",
    [
        f"250 Ok {TOKEN}",
        f"250 2.0.0 Ok: queued as {TOKEN}",
        f"250 OK <{TOKEN}>",
        f"250 Ok id={TOKEN}.",
    ],
)
def test_a_token_is_found_in_the_final_reply(reply: str) -> None:
    assert reply_tokens(reply) == [TOKEN]


@pytest.mark.parametrize(
    "reply",
    [
        "250 2.0.0 Ok: queued as 4TabcdEfghz1",
        "250 2.0.0 OK  1700000000 d2e1a72fcca58-6e9f2b0c1d3sm12345678b3a.42 - gsmtp",
        "250 ok aaaa1111-2222-3333-4444-555566667777",
        f"250 Ok x{TOKEN}",
        f"250 Ok {TOKEN}0",
        f"250 Ok {TOKEN}-1",
        "250",
        "",
    ],
)
def test_other_words_of_a_reply_are_no_token(reply: str) -> None:
    assert reply_tokens(reply) == []


@pytest.mark.parametrize(
    "domain",
    ["email.amazonses.com", "eu-west-1.amazonses.com", "US-WEST-2.AMAZONSES.COM", "cn-north-1.amazonses.com.cn"],
)
@pytest.mark.parametrize("field", ["In-Reply-To", "References"])
def test_an_answer_to_an_id_of_the_provider_reaches_the_author(field: str, domain: str) -> None:
    answer = mail(f"To: {E}", f"{field}: <{TOKEN}@{domain}>")
    assert outcome(decide(answer, external(), people(), KNOWN)) == (3, {ALEX})


def test_a_notice_about_an_id_of_the_provider_reaches_the_author() -> None:
    notice = mail(f"To: {E}", "Return-Path: <>", "", f"Message-ID: <{TOKEN}@email.amazonses.com>")
    assert outcome(decide(notice, external(), people(), KNOWN)) == (4, {ALEX})


@pytest.mark.parametrize(
    "message_id",
    [
        f"{TOKEN}@amazonses.com.evil.example",
        f"{TOKEN}@evil-amazonses.com",
        f"{TOKEN}@company.com",
        f"x{TOKEN}@email.amazonses.com",
        f"{TOKEN[:-1]}@email.amazonses.com",
    ],
)
def test_an_id_at_another_domain_is_not_the_token(message_id: str) -> None:
    assert sent_key(message_id) == message_id
    answer = mail(f"To: {E}", f"In-Reply-To: <{message_id}>")
    assert outcome(decide(answer, external(), people(), KNOWN)) == (5, EVERYONE)


def test_an_own_copy_with_an_id_of_the_provider_is_known() -> None:
    back = mail(f"From: {E}", "To: customer@x.example", f"Message-ID: <{TOKEN}@email.amazonses.com>", body="Hello")
    copy = own_copy(back, external(), people(), KNOWN)
    assert copy and (copy.copy_of, copy.further_id) == (TOKEN, None)


def test_the_id_of_an_own_copy_is_learnt_as_its_token() -> None:
    back = mail(
        f"From: {E}",
        "To: customer@x.example",
        f"Message-ID: <{TOKEN}@email.amazonses.com>",
        "X-Google-Original-Message-ID: <alex-1@company.com>",
        body="Hello",
    )
    copy = own_copy(back, external(), people(), SENT)
    assert copy and (copy.copy_of, copy.further_id) == ("alex-1@company.com", TOKEN)
