"""The REST API under /api/v1: the functions of the console for scripts. Fields are those of the command line's JSON.

A script sends a token (``Authorization: Bearer …``). A signed-in browser may call the API, too.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer

from services.admin.web.api import (
    accounts_file,
    answers,
    authorizations,
    external_accounts,
    local_accounts,
    mails,
    queues,
    state,
    users,
)
from services.admin.web.api.schemas.common import ApiError

DESCRIPTION = (
    "Accounts, mail and the status of a mailgroup. Create a token in the console under *Users and tokens*. Times are "
    "ISO 8601 in UTC. Lists come in pages: pass the last entry of a page as `after` or `before` to get the next one."
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ApiError, "description": "The request is malformed."},
    401: {"model": ApiError, "description": "The request has neither a session nor a valid token."},
    403: {"model": ApiError, "description": "The role of the user or token does not allow this."},
    404: {"model": ApiError, "description": "The account or mail does not exist."},
    409: {"model": ApiError, "description": "The current state does not allow this."},
    412: {"model": ApiError, "description": "If-Match names another version: the account was changed meanwhile."},
    413: {"description": "The request is too large."},
    422: {"model": ApiError, "description": "A field is invalid; the answer names it."},
    503: {"model": ApiError, "description": "The database is unavailable."},
}
_bearer = HTTPBearer(auto_error=False, description="A token created in the console.")
router = APIRouter(prefix="/api/v1", responses=_PROBLEMS, dependencies=[Depends(_bearer)])
for _topic in (state, external_accounts, authorizations, local_accounts, accounts_file, mails, answers, queues, users):
    router.include_router(_topic.router)
