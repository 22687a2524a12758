"""The choice "Log in with" of an external account's page: a password, or ways to get access tokens, and their fields.
Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.admin.web.forms import Form
from shared.languages.translation import marked
from shared.model import GrantType, OAuth

PASSWORD: Final = "password"
SAME: Final = "same"
RELAYS: Final = ("smtp", "smtp2", "smtp3")
"""Prefixes of the fields of the SMTP servers, in their order."""
RELAY_SECRETS: Final = {f"{prefix}.password": f"{prefix}.kept" for prefix in RELAYS}
SECRETS: Final = {
    "password": "kept",
    "oauth.client_secret": "oauth.kept",
    "oauth.client_key": "oauth.kept_key",
} | RELAY_SECRETS
"""Fields of secrets, with the hidden field that stands for one that is typed and not saved yet; and those of the SMTP
servers."""
_CONSENT = ("device_url", "authorize_url")
"""Endpoints that only a person's authorization needs."""


@dataclass(frozen=True, slots=True)
class TokenMethod:
    """A way to get access tokens. issuer: its name; '' for another provider, whose endpoints are typed."""

    key: str  # value in the form, and in the style sheet
    words: str
    issuer: str
    grant: GrantType

    @property
    def secrets(self) -> tuple[str, ...]:
        """The fields by which the application proves itself: one of them is given, or none."""
        if self.grant == "jwt_bearer":
            return ("oauth.client_key",)
        by_person_at_google = self.issuer == "google" and self.grant == "authorization"
        return ("oauth.client_secret",) if by_person_at_google else ("oauth.client_secret", "oauth.client_key")


METHODS: Final = (
    TokenMethod("google", marked("access tokens of Google, allowed by a person"), "google", "authorization"),
    TokenMethod("google-service", marked("access tokens of Google, for a service account"), "google", "jwt_bearer"),
    TokenMethod("microsoft", marked("access tokens of Microsoft, allowed by a person"), "microsoft", "authorization"),
    TokenMethod(
        "microsoft-app", marked("access tokens of Microsoft, for an application"), "microsoft", "client_credentials"
    ),
    TokenMethod("other", marked("access tokens of another provider, allowed by a person"), "", "authorization"),
    TokenMethod("other-app", marked("access tokens of another provider, for an application"), "", "client_credentials"),
    TokenMethod("other-signed", marked("access tokens of another provider, by a signed request"), "", "jwt_bearer"),
)
CHOICES: Final = (
    (PASSWORD, marked("a password")),
    *((method.key, method.words) for method in METHODS),
    (SAME, marked("the access tokens of another account")),
)
"""Values and words of the choice, in the order of the page."""


def method_of(oauth: OAuth | None) -> str:
    """Return the choice for the stored settings of an account."""
    if oauth is None:
        return PASSWORD
    if oauth.same_as is not None:
        return SAME
    return next(method.key for method in METHODS if (method.issuer, method.grant) == (oauth.name, oauth.grant))


def secret_fields(method: str) -> tuple[str, ...]:
    """Return the fields of secrets that this choice has."""
    if method == SAME:
        return ()
    return next((each.secrets for each in METHODS if each.key == method), ("password",))


def oauth_fields(form: Form, secrets: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the typed field ``oauth`` of the accounts file; None for a password.

    What another choice shows is left out, so a form without a style sheet that hides it means the same.
    """
    chosen = form.text("method")
    if chosen == SAME:
        return {"same_as": form.text("oauth.same_as")}
    method = next((each for each in METHODS if each.key == chosen), None)
    if method is None:
        return None
    names = ("token_url", "scope", *(_CONSENT if method.grant == "authorization" else ()))
    endpoints = {name: typed for name in names if (typed := form.text(f"oauth.issuer.{name}"))}
    fields: dict[str, Any] = {"issuer": method.issuer or endpoints, "client_id": form.text("oauth.client_id")}
    if method.grant != "authorization":
        fields["grant"] = method.grant
    if method.issuer == "microsoft" and (tenant := form.text("oauth.tenant")):
        fields["tenant"] = tenant
    return fields | {
        name.removeprefix("oauth."): secret for name, secret in secrets.items() if name.startswith("oauth.")
    }
