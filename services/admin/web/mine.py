"""What a person finds who signs in with a local account: their own account and nothing else."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.web.desk import Here, NotSignedIn, Person
from shared import accounts

router = APIRouter(include_in_schema=False, prefix="/mine")


@router.get("")
async def show(request: Request, here: Here, who: Person) -> Response:
    """Who they are for the gateway."""
    assert who.local_id is not None
    async with here.system.database.transaction() as connection:
        found = await accounts.locals_(connection, [who.local_id])
        if not found:
            raise NotSignedIn  # removed meanwhile
        external = await accounts.externals(connection, [found[0].external_id])
    return await here.page(request, who, "mine.html", person=found[0], external=external[0] if external else None)
