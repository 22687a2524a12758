"""The ids of providers that replace the Message-ID of a mail and report only a token of the new one. Pure.

The provider's reply to the final dot contains the token, which is the left part of the id that the recipient gets. An
answer has the whole id, whose domain depends on the provider's region. So the token alone is recorded, and an id at one
of the provider's domains is looked up by its left part. A provider that writes the whole id into its reply
(``<id@domain>``) needs no rule here.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class TokenRule(NamedTuple):
    """How one provider writes its tokens."""

    provider: str
    token: str  # pattern of the left part, narrow enough that no other id looks like it
    domains: str  # pattern of the domains, in lower case


RULES = (
    # 16 digits, a UUID, 6 digits. The region us-east-1 has the domain email.amazonses.com, the others their name.
    TokenRule(
        "Amazon SES",
        r"[0-9a-z]{16}-[0-9a-z]{8}(?:-[0-9a-z]{4}){3}-[0-9a-z]{12}-[0-9]{6}",
        r"(?:[a-z0-9-]{1,63}\.)?amazonses\.com(?:\.cn)?",
    ),
)
_IN_REPLY = [re.compile(rf"(?<![^\s<\[(=:]){rule.token}(?![^\s>\])@.,;])", re.IGNORECASE) for rule in RULES]
_IDS = [re.compile(rf"({rule.token})@{rule.domains}", re.IGNORECASE) for rule in RULES]


def reply_tokens(reply: str) -> list[str]:
    """Return the tokens of known providers in a reply to the final dot."""
    return [token for pattern in _IN_REPLY for token in pattern.findall(reply)]


def sent_key(message_id: str) -> str:
    """Return the form in which sent mail is recorded and looked up: the token of a known provider's id, else the id."""
    for pattern in _IDS:
        if match := pattern.fullmatch(message_id):
            return match[1]
    return message_id
