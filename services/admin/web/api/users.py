"""Requests on the users of the console, their sessions, and the tokens of scripts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from services.admin.access import user_changes, users
from services.admin.web.api.schemas.common import ChangeLines
from services.admin.web.api.schemas.users import (
    ConsoleUserEntry,
    NewPassword,
    NewRole,
    NewToken,
    NewUser,
    TokenEntry,
    TokenSecret,
    UserSession,
)
from services.admin.web.page_context import Administrator, PageDep

router = APIRouter(tags=["users"])

_Id = Annotated[int, Path(ge=1, le=2**63 - 1, description="As listed.")]


@router.get("/users", response_model=list[ConsoleUserEntry])
async def list_users(context: PageDep, user: Administrator) -> Any:
    """List the users of the console, by name."""
    async with context.system.database.transaction() as connection:
        return await users.list_users(connection)


@router.post("/users", response_model=ChangeLines)
async def add_user(context: PageDep, user: Administrator, given: NewUser) -> Any:
    """Add a user of the console."""
    hashed = await user_changes.hash_password(context.system.passwords, given.password)
    async with context.system.database.transaction() as connection:
        line = await user_changes.add_user(connection, user.name, given.name, given.role, hashed)
    return {"changed": [line]}


@router.put("/users/{id}/password", response_model=ChangeLines)
async def set_user_password(context: PageDep, user: Administrator, id: _Id, given: NewPassword) -> Any:
    """Set the password of a user; all sessions of the user end."""
    hashed = await user_changes.hash_password(context.system.passwords, given.password)
    async with context.system.database.transaction() as connection:
        line = await user_changes.set_password(connection, user.name, id, hashed)
    return {"changed": [line]}


@router.put("/users/{id}/role", response_model=ChangeLines)
async def set_user_role(context: PageDep, user: Administrator, id: _Id, given: NewRole) -> Any:
    """Set the role of a user; one user has to stay administrator."""
    async with context.system.database.transaction() as connection:
        line = await user_changes.set_role(connection, user.name, id, given.role)
    return {"changed": [line]}


@router.delete("/users/{id}", response_model=ChangeLines)
async def remove_user(context: PageDep, user: Administrator, id: _Id) -> Any:
    """Remove a user of the console; one user has to stay administrator."""
    async with context.system.database.transaction() as connection:
        line = await user_changes.remove_user(connection, user.name, id)
    return {"changed": [line]}


@router.get("/sessions", response_model=list[UserSession])
async def list_sessions(context: PageDep, user: Administrator) -> Any:
    """List the browsers in which users of the console are signed in, the latest first."""
    async with context.system.database.transaction() as connection:
        return await users.list_sessions(connection)


@router.delete("/sessions/{id}", response_model=ChangeLines)
async def end_session(context: PageDep, user: Administrator, id: _Id) -> Any:
    """Sign a user out of one browser."""
    async with context.system.database.transaction() as connection:
        line = await user_changes.end_session(connection, user.name, id)
    return {"changed": [line]}


@router.get("/tokens", response_model=list[TokenEntry])
async def list_tokens(context: PageDep, user: Administrator) -> Any:
    """List the tokens of scripts, the oldest first."""
    async with context.system.database.transaction() as connection:
        return await users.list_tokens(connection)


@router.post("/tokens", response_model=TokenSecret)
async def create_token(context: PageDep, user: Administrator, given: NewToken) -> Any:
    """Create a token. The response shows it once; only its digest is stored."""
    async with context.system.database.transaction() as connection:
        token = await user_changes.create_token(connection, user.name, given.name, given.role, given.days)
    return {**given.model_dump(), "token": token}


@router.delete("/tokens/{id}", response_model=ChangeLines)
async def revoke_token(context: PageDep, user: Administrator, id: _Id) -> Any:
    """Revoke a token: the next request with it is refused."""
    async with context.system.database.transaction() as connection:
        line = await user_changes.revoke_token(connection, user.name, id)
    return {"changed": [line]}
