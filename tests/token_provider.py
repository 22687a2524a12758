"""A real Dovecot and Postfix that take the access tokens of ``TokenServer``, by XOAUTH2 or by OAUTHBEARER."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.machine import dovecot, dovecot_postfix
from deploy.machine.dovecot import DovecotServer
from deploy.machine.dovecot_postfix import DemoProvider
from deploy.machine.provider_config import dovecot_server
from tests import servers
from tests.token_server import TokenServer


@contextmanager
def token_provider(tokens: TokenServer, mechanism: str) -> Iterator[DemoProvider]:
    """Run one. It asks the token server about each token (RFC 7662). :param mechanism: xoauth2 or oauthbearer."""

    def with_tokens(folder: Path, *others: object) -> DovecotServer:
        server = dovecot_server(folder, *others)  # type: ignore[arg-type]
        lines = _asking(folder, f"{tokens.url}/introspect", mechanism)
        return replace(server, mechanisms=f"plain {mechanism}", settings=(*server.settings, *lines))

    with servers.scratch() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dovecot_postfix, "dovecot_server", with_tokens)
        with DemoProvider(folder) as running:
            yield running


def _asking(folder: Path, url: str, mechanism: str) -> list[str]:
    """Return the lines for dovecot.conf. Up to 2.3 tokens have a password database, with a file of its own."""
    settings = ["introspection_mode = post", f"introspection_url = {url}", "username_attribute = username"]
    settings += ["force_introspection = yes", "active_attribute = active", "active_value = true"]
    if dovecot.installed_version() >= (2, 4):
        return ["oauth2 {", *settings, "}"]
    file = folder / "etc" / "oauth2.conf"
    file.write_text("\n".join([*settings, ""]), encoding="utf-8")
    return ["passdb {", "  driver = oauth2", f"  mechanisms = {mechanism}", f"  args = {file}", "}"]
