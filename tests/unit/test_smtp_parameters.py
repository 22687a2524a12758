"""services/smtp_in/parameters.py: parameters of MAIL and RCPT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.smtp_in.data_reader import SmtpRefusal
from services.smtp_in.parameters import PathParameters, parse_mail, parse_rcpt


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("FROM:<a@b.c>", PathParameters("a@b.c")),
        ("from: <a@b.c> ", PathParameters("a@b.c")),
        ("FROM:a@b.c", PathParameters("a@b.c")),
        ("FROM:<>", PathParameters("")),
        ("FROM:<> ", PathParameters("")),
        ("FROM:<> SIZE=10", PathParameters("", size=10)),
        ("FROM:<a@b.c> size=1000 body=8bitmime AUTH=<>", PathParameters("a@b.c", size=1000)),
        ("FROM:<a@b.c> BODY=7BIT SMTPUTF8", PathParameters("a@b.c", True)),
        ('FROM:<"a b>c"@d.e>', PathParameters('"a b>c"@d.e')),
        ("FROM:<@x,@y:a@b.c>", PathParameters("@x,@y:a@b.c")),
        ("FROM:<a@b.c> ret=hdrs SIZE=9 ENVID=QQ+3D1", PathParameters("a@b.c", False, "RET=HDRS ENVID=QQ+3D1", 9)),
    ],
)
def test_mail_is_understood(argument: str, expected: PathParameters) -> None:
    assert parse_mail(argument, 1000) == expected


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("", "501"),
        ("a@b.c", "501"),
        ("TO:<a@b.c>", "501"),
        ("FROM:<a@b.c", "501"),
        ("FROM:", "501"),
        ("FROM:<a@b.c>x", "501"),
        ("FROM:<a b@c>", "501"),
        ("FROM:<a@b.c> SIZE=1001", "552 5.3.4"),
        ("FROM:<a@b.c> SIZE=x", "501"),
        ("FROM:<a@b.c> SIZE=", "501"),
        ("FROM:<a@b.c> BODY=BINARYMIME", "501"),
        ("FROM:<a@b.c> SMTPUTF8=1", "501"),
        ("FROM:<a@b.c> NOTIFY=NEVER", "555 5.5.4"),
        ("FROM:<a@b.c> RET=BODY", "501 5.5.4"),
        ("FROM:<a@b.c> RET=HDRS RET=FULL", "501 5.5.4"),
        ("FROM:<a@b.c> ENVID=a+b", "501 5.5.4"),
        ("FROM:<a@b.c> ENVID=", "501 5.5.4"),
        ("FROM:<a@b.c> ENVID=" + "x" * 101, "501 5.5.4"),
        ("FROM:<a@b.c> SIZE=" + "9" * 500, "501"),
    ],
)
def test_wrong_mail_is_refused(argument: str, code: str) -> None:
    assert str(parse_mail(argument, 1000)).startswith(code)


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("TO:<a@b.c> RET=FULL", "555 5.5.4"),
        ("TO:<a@b.c> NOTIFY=NEVER,SUCCESS", "501 5.5.4"),
        ("TO:<a@b.c> NOTIFY=", "501 5.5.4"),
        ("TO:<a@b.c> NOTIFY=ALWAYS", "501 5.5.4"),
        ("TO:<a@b.c> NOTIFY=DELAY NOTIFY=DELAY", "501 5.5.4"),
        ("TO:<a@b.c> ORCPT=a@b.c", "501 5.5.4"),
        ("TO:<a@b.c> ORCPT=rfc822;", "501 5.5.4"),
        ("TO:<a@b.c> ORCPT=rfc822;a\x7fb", "501 5.5.4"),
        ("TO:<a@b.c> ORCPT=rfc822;" + "x" * 500, "501 5.5.4"),
        ("TO:<>", "501"),
        ("FROM:<a@b.c>", "501"),
        ("TO:<a@b.c", "501"),
    ],
)
def test_wrong_rcpt_is_refused(argument: str, code: str) -> None:
    assert str(parse_rcpt(argument)).startswith(code)


def test_rcpt_is_understood() -> None:
    assert parse_rcpt("TO: <a@b.c>") == parse_rcpt("to:a@b.c") == PathParameters("a@b.c")
    asked = "ORCPT=rfc822;a+2Bb@c.d NOTIFY=FAILURE,DELAY"
    assert parse_rcpt("TO:<a@b.c> orcpt=rfc822;a+2Bb@c.d Notify=failure,delay,failure") == PathParameters(
        "a@b.c", dsn_params=asked
    )


@given(st.text(max_size=200))
def test_nothing_makes_it_raise(text: str) -> None:
    assert isinstance(parse_mail("FROM:" + text, 1000), PathParameters | SmtpRefusal)
    assert isinstance(parse_rcpt(text), PathParameters | SmtpRefusal)
