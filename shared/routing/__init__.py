"""Decides who gets a mail of an external account (the manual's chapter 3). Pure functions.

``read_facts`` extracts from the header all that the rules need, ``referenced_ids`` names the mails whose authors are
needed. ``find_own_copy`` recognises a mail of ours that its provider lists again, ``read_probe`` a probe mail for reply
tags; ``decide`` applies the five rules to any other mail. A mail with an unreadable header goes to everyone. A mail is
held only if no user who shares the account is enabled.
"""

from shared.routing.decision import Decision, RoutedRecipient, decide, unknown_names
from shared.routing.facts import AddressedNames, HeaderFacts, answered_ids, read_facts, referenced_ids
from shared.routing.own_copies import OwnCopy, find_own_copy, has_same_body
from shared.routing.probe_mails import ProbeMail, probes_named, read_probe

__all__ = [
    "AddressedNames",
    "Decision",
    "HeaderFacts",
    "OwnCopy",
    "ProbeMail",
    "RoutedRecipient",
    "answered_ids",
    "decide",
    "find_own_copy",
    "has_same_body",
    "probes_named",
    "read_facts",
    "read_probe",
    "referenced_ids",
    "unknown_names",
]
