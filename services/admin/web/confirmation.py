"""The question before what cannot be undone: a page says what will happen to how many, and nothing is done yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from services.admin.access.users import CurrentUser
from services.admin.accounts.field_problems import EMPTY
from services.admin.web.forms import FieldErrors, Form
from services.admin.web.page_context import PageContext
from shared.languages.translation import lookup

CONFIRMED = "confirmed"
"""The field of the second press."""
ITEMS = 20
"""Limit of the things that a question names one by one."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a user is asked before an action."""

    title: str  # with the number of things
    effects: Sequence[str]  # what will happen, a sentence each
    button: str
    back: str  # path of the page to which a user who declines returns
    items: Sequence[str] = ()  # the things; the first ones are shown
    reason: str = ""  # label of the field for a reason; '': there is none
    reason_needed: bool = False
    further: int = 0  # number of things that are not among the items


def is_confirmed(form: Form) -> bool:
    """Return whether the user has pressed the button of the question."""
    return form.flag(CONFIRMED)


async def ask(request: Request, context: PageContext, user: CurrentUser, form: Form, question: Question) -> Response:
    """Show the question. Its button sends the form again to the same path, as confirmed."""
    errors = FieldErrors.of({"reason": EMPTY} if is_confirmed(form) and question.reason_needed else {})
    return await context.render_page(
        request,
        user,
        "confirm.html",
        status=422 if errors else 200,
        question=question,
        items=question.items[:ITEMS],
        more=max(0, len(question.items) - ITEMS) + question.further,
        fields=[(name, value) for name, value in form.pairs() if name not in (CONFIRMED, "reason")],
        reason=form.text("reason"),
        invalid=errors,
        problems=[f"{question.reason}: {lookup(errors['reason'])}"] if errors else [],
    )
