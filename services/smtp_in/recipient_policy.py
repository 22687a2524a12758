"""Decides where mail for a recipient goes: to a local account, to one of our external accounts, or to the relay.

Pure functions over the accounts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.smtp_in.data_reader import SmtpRefusal
from shared.mime.addresses import fold_address
from shared.model import EnvelopeRecipient, External, Local

ADDRESS_OCTETS = 254  # RFC 5321 section 4.5.3.1.3, without the brackets
LABEL_OCTETS = 63

_LOCAL_PART = re.compile(r"[^\x00-\x20\x7f-\x9f\"(),:;<>@\[\]\\]+")
_LABEL = re.compile(r"[a-zA-Z0-9_\u0080-\U0010ffff](?:[a-zA-Z0-9_\-\u0080-\U0010ffff]*[a-zA-Z0-9_\u0080-\U0010ffff])?")
_SURROGATE = re.compile("[\ud800-\udfff]")  # octets that are not UTF-8


@dataclass(frozen=True, slots=True)
class Directory:
    """The accounts, enabled or not, by folded address and by id."""

    locals: dict[str, Local]  # by address
    externals: dict[str, External]  # by address
    local_ids: dict[int, Local]
    external_ids: dict[int, External]
    local_domains: frozenset[str]  # domains of local accounts only: unknown addresses in them are refused
    version: str = ""  # of the accounts (accounts_version)
    _own: dict[Local, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_accounts(cls, externals: Sequence[External], people: Sequence[Local], version: str = "") -> Directory:
        """Build a directory of all accounts that are not removed, enabled or not."""
        by_local = {_fold_or_same(address): local for local in people for address in (local.address, *local.addresses)}
        by_external = {
            _fold_or_same(a): external for external in externals for a in (external.address, *external.aliases)
        }
        return cls(
            by_local,
            by_external,
            {local.id: local for local in people},
            {external.id: external for external in externals},
            frozenset(map(_domain, by_local)) - frozenset(map(_domain, by_external)),
            version,
        )

    def is_ours(self, address: str) -> bool:
        """Return whether a folded address is, or was, one of a local or an external account."""
        return address in self.locals or address in self.externals or _domain(address) in self.local_domains

    def addresses_of(self, author: Local) -> frozenset[str]:
        """Folded addresses that the author may send from: its own, the external account's and its aliases."""
        addresses = self._own.get(author)
        if addresses is None:
            external = self.external_ids.get(author.external_id)
            own = author.own_addresses | (external.own_addresses if external else frozenset())
            addresses = self._own[author] = frozenset(map(fold_address, own))
        return addresses


def resolve(directory: Directory, address: str) -> EnvelopeRecipient | SmtpRefusal:
    """Resolve a recipient address. :param address: as in RCPT; its syntax is checked before (``check_syntax``)."""
    folded = fold_address(address)
    local = directory.locals.get(folded)
    if local is not None:
        return _resolve_local(directory, local, address)
    external = directory.externals.get(folded) or directory.externals.get(_without_tag(folded))
    if external is not None:
        return EnvelopeRecipient(address, "external", external.id)
    if _domain(folded) in directory.local_domains:
        return SmtpRefusal(550, "5.1.1", f"<{_printable(address)}>: there is no such account here")
    return EnvelopeRecipient(address, "relay")


def _resolve_local(directory: Directory, local: Local, address: str) -> EnvelopeRecipient | SmtpRefusal:
    if local.enabled:
        return EnvelopeRecipient(address, "local", local.id)
    delegate = directory.local_ids.get(local.delegate_id) if local.delegate_id is not None else None
    if delegate is not None and delegate.enabled and delegate.external_id == local.external_id:
        return EnvelopeRecipient(address, "local", delegate.id)  # one hop: the delegate's own delegate is ignored
    return SmtpRefusal(550, "5.2.1", f"<{_printable(address)}>: this account is disabled")


def check_size(external: External | None, recipients: Iterable[EnvelopeRecipient], octets: int) -> SmtpRefusal | None:
    """Refuse a mail that is too large for the author's provider, if all its recipients are outside.

    With a recipient inside the mail is accepted: the provider refuses the others, and the author gets a notice.
    """
    max_octets = external.max_octets if external is not None else None
    if max_octets is None or octets <= max_octets or any(recipient.kind != "relay" for recipient in recipients):
        return None
    return SmtpRefusal(552, "5.3.4", f"The mail is larger than the {max_octets} octets that the mail provider takes")


def delivery_key(recipient: EnvelopeRecipient) -> tuple[str, object]:
    """A key that is equal for two recipients that share one copy."""
    return recipient.kind, recipient.target_id or fold_address(recipient.address)


def check_syntax(address: str, smtputf8: bool) -> SmtpRefusal | None:
    """Refuse an address that is malformed, or that servers could resolve to different recipients.

    Those are source routes (RFC 5321 appendix C), ``user%host``, ``host!user``, quoted local parts and address
    literals. They are not in use any more.
    """
    local, _, domain = address.rpartition("@")
    problem: tuple[int, str, str] | None = None
    if not address.isascii() and not smtputf8:
        problem = 553, "5.6.7", "an address beyond ASCII needs SMTPUTF8"
    elif address.startswith("@") or address.endswith("@"):
        problem = 553, "5.1.3", "source routes and addresses without a domain are not taken"
    elif not local:
        problem = 553, "5.1.3", "the address has no domain"
    elif len(address.encode("utf-8", "replace")) > ADDRESS_OCTETS:
        problem = 553, "5.1.3", f"the address is longer than {ADDRESS_OCTETS} octets"
    elif local.startswith('"'):
        problem = 553, "5.1.3", "quoted local parts are not taken"
    elif "%" in local or "!" in local:
        problem = 553, "5.1.3", "routing by % or ! is not taken"
    elif not _LOCAL_PART.fullmatch(local) or _SURROGATE.search(address):
        problem = 553, "5.1.3", "the part before the @ is malformed"
    elif domain.startswith("["):
        problem = 553, "5.1.2", "address literals are not taken"
    elif not all(_LABEL.fullmatch(label) and len(label) <= LABEL_OCTETS for label in domain.split(".")):
        problem = 553, "5.1.2", "the domain is malformed"
    if problem is None:
        return None
    shown = _printable(address) if smtputf8 else _printable(address).encode("ascii", "replace").decode()
    return SmtpRefusal(problem[0], problem[1], f"<{shown}>: {problem[2]}")


def _fold_or_same(address: str) -> str:
    """The folded address; the same string object if it is folded already, to save memory for many accounts."""
    folded = fold_address(address)
    return address if folded == address else folded


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


def _without_tag(address: str) -> str:
    """Without the tag: ``support+tag@company.com`` belongs to support@company.com, as in routing."""
    local, _, domain = address.rpartition("@")
    return f"{local.partition('+')[0]}@{domain}"


def _printable(text: str) -> str:
    """Text for a reply: printable, one line, up to 100 characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:100]).encode("utf-8", "replace").decode()
