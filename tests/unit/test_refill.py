"""services/admin/web/refill.py: typed values in a page, and the rest of the page as it was."""

from __future__ import annotations

import pytest

from services.admin.web.refill import SECRETS, TypedForm, refill

PAGE = """<!doctype html>
<p>Über &amp; &#39;x&#39; <!-- a comment --></p>
<form method="post" action="/a"><input type="hidden" name="id" value="1"><input name="x" value="old"></form>
<form method="post" action="/a"><input type="hidden" name="id" value="2">
<input type="hidden" name="version" value="now">
<details><summary>More</summary><input name="x" value="old"><input type="checkbox" name="t" checked>
<input type="checkbox" name="n" value="7"><input type="checkbox" name="n" value="8">
<select name="s"><option value="">none</option><option value="one" selected>1</option><option value="two">2</option>
</select>
<textarea name="a" rows="2">old &lt;text&gt;</textarea>
<input type="password" name="password" value=""></details></form>
"""
SENT = [
    ("id", "2"),
    ("version", "then"),
    ("x", 'new "value" <b>'),
    ("n", "8"),
    ("s", "two"),
    ("a", "\nfirst\n</textarea>"),
    ("password", "secret"),
]


def test_the_form_has_what_was_typed_and_nothing_else_is_changed() -> None:
    filled = refill(PAGE, TypedForm.of("/a", SENT))
    assert filled.startswith(PAGE.partition('value="now">')[0].rpartition("<")[0])
    assert '<input type="hidden" name="version" value="then">' in filled  # so that a change meanwhile is found
    assert '<details open><summary>More</summary><input name="x" value="new &quot;value&quot; &lt;b&gt;">' in filled
    assert '<input type="checkbox" name="t">' in filled
    assert '<input type="checkbox" name="n" value="7"><input type="checkbox" name="n" value="8" checked>' in filled
    assert '<option value="one">1</option><option value="two" selected>2</option>' in filled
    assert '<textarea name="a" rows="2">\n\nfirst\n&lt;/textarea&gt;</textarea>' in filled
    assert "secret" not in filled and 'name="password" value="">' in filled


@pytest.mark.parametrize(("action", "sent"), [("/b", SENT), ("/a", [("id", "3"), ("x", "y")])])
def test_a_page_without_the_form_stays_as_it_is(action: str, sent: list[tuple[str, str]]) -> None:
    assert refill(PAGE, TypedForm.of(action, sent)) == PAGE


def test_of_several_forms_the_one_that_can_have_the_values_is_filled() -> None:
    lists = "".join(
        f'<form action="/q"><input type="checkbox" name="id" value="{number}"><select name="do"><option value="">'
        f'<option value="{verb}"></select></form>'
        for number, verb in ((1, "retry"), (2, "discard"))
    )
    filled = refill(lists, TypedForm.of("/q", [("id", "2"), ("do", "discard")]))
    assert 'value="2" checked>' in filled and 'value="discard" selected>' in filled
    assert 'value="1" checked>' not in filled


def test_what_goes_through_the_sign_in_page_has_no_password() -> None:
    sent = [(name, "secret") for name in sorted(SECRETS)]
    typed = TypedForm.of("/a", [*sent, ("kept", "handle"), ("confirmed", "on"), ("x", "ü")])
    assert typed.had_secrets and typed.pairs == [("x", "ü")]
    text = typed.as_text()
    assert "secret" not in text and "handle" not in text
    assert TypedForm.from_text(text) == typed


def test_a_form_that_is_too_long_is_not_kept() -> None:
    assert TypedForm.of("/a", [("x", "ä" * 40_000)]).as_text() == ""


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1", "[" * 100_000, '["/a", [["x"]], true]', '["/a", 5, false]'])
def test_a_text_that_is_no_form_is_none(text: str) -> None:
    assert TypedForm.from_text(text) is None


@pytest.mark.parametrize("name", ["version", "found", "kept", "pop3.shown_tls", "imap.shown_tls", "smtp.shown_tls"])
def test_a_form_whose_hidden_state_is_another_is_filled(name: str) -> None:
    page = f'<form action="/a"><input type="hidden" name="{name}" value=""><input name="x" value=""></form>'
    assert '<input name="x" value="typed">' in refill(page, TypedForm.of("/a", [(name, "7"), ("x", "typed")]))
