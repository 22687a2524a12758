"""The errors of pydantic as problems in the words of an accounts file. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from services.admin.accounts.errors import AccountProblem, Kind
from services.admin.suggestions import did_you_mean, say_unknown

_SECRET = re.compile("^password|^client_secret|^client_key$|_url$")
"""Fields whose value no error shows; the path or query of a URL may be a key."""
_SHOWN = 60
"""Limits a value in an error: characters."""
EMPTY = "fill this in"
"""What a page says beside a field that is empty and must not be."""
CHOOSE = "choose one of the list"
_TAGS = ("known", "endpoints", "one", "several")
"""Parts of an error's place that are no names of fields: the alternatives of ``OAuthFields.issuer`` and
``ExternalFields.smtp``."""


def find_problems(
    error: ValidationError, model: type[BaseModel], kind: Kind, index: int, data: Any
) -> list[AccountProblem]:
    """Return the problems of one account's entry. :param data: the entry as it was given."""
    given = data.get("address") if isinstance(data, dict) else None
    address = given if isinstance(given, str) and re.fullmatch(r"[^\s:]{1,200}", given) and "@" in given else ""
    schema = model.model_json_schema()
    problems = []
    for each in error.errors():
        field = tuple(part for part in each["loc"] if part not in _TAGS)
        words, value = _words(each["type"], each["msg"], each["input"], field, schema)
        if any(_SECRET.search(str(part)) for part in field) or isinstance(each["input"], dict):
            value = ""
        empty = each["type"] == "missing" or each["input"] == ""
        on_page = EMPTY if empty else CHOOSE if each["type"] == "literal_error" else ""
        of_name = each["type"] == "extra_forbidden"
        problems.append(AccountProblem(words, kind, index, address, field, value, on_page, of_name))
    return problems


def _words(
    kind: str, message: str, given: Any, field: Sequence[str | int], schema: Mapping[str, Any]
) -> tuple[str, str]:
    """Return what is wrong and what is allowed, and the value if the words speak of it."""
    rules = _find_rules(schema, field)
    if kind == "missing":
        return "is missing", ""
    if kind == "extra_forbidden":
        names = list(_properties(_find_rules(schema, field[:-1]), schema))
        more = did_you_mean(str(field[-1]), names) or f"; allowed here are {', '.join(names)}"
        return f"there is no such field{more}", ""
    if kind == "model_type":
        names = list(_properties(rules, schema))
        return f"is made of the fields {', '.join(names)}", ""
    if kind == "value_error":
        return message.removeprefix("Value error, "), "" if given is None else show_value(given)
    return _allowed(kind, given, [*_alternatives(rules, schema)]), show_value(given)


def _allowed(kind: str, given: Any, rules: Sequence[Mapping[str, Any]]) -> str:
    """Return the words for a value of a wrong type or size. :param rules: of the alternatives of the field."""
    kinds = {rule.get("type") for rule in rules}
    if choices := [choice for rule in rules for choice in rule.get("enum", ())]:
        return f"is not one of {', '.join(choices)}" + (did_you_mean(given, choices) if isinstance(given, str) else "")
    if "integer" in kinds:
        rule = next(rule for rule in rules if rule.get("type") == "integer")
        quotes = " (a number has no quotes)" if isinstance(given, str) and given.strip("-").isdecimal() else ""
        return f"is not a number from {rule.get('minimum')} to {rule.get('maximum')}{quotes}"
    if "boolean" in kinds:
        return "is not true or false"
    if "array" in kinds and kind == "list_type":
        return "is not a list, for example [one, two]"
    if kind == "string_too_short":
        return "is empty"
    if kind == "string_too_long":
        longest = max(rule.get("maxLength", 0) for rule in rules)
        return f"is longer than {longest} characters"
    return "is not text; put it in quotes"


def _find_rules(schema: Mapping[str, Any], field: Sequence[str | int]) -> Mapping[str, Any]:
    """Return the part of a JSON schema that holds for a field."""
    rules = schema
    for part in field:
        alternatives = list(_alternatives(rules, schema))
        if isinstance(part, int):
            rules = next((each["items"] for each in alternatives if "items" in each), {})
        else:
            rules = next((found for each in alternatives if (found := each.get("properties", {}).get(part))), {})
    return rules


def _alternatives(rules: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the rules, with each alternative alone, and references followed."""
    if reference := rules.get("$ref"):
        yield from _alternatives(schema["$defs"][reference.rpartition("/")[2]], schema)
        return
    inner = [*rules.get("anyOf", ()), *rules.get("oneOf", ())]
    for each in inner:
        yield from _alternatives(each, schema)
    if not inner:
        yield rules


def _properties(rules: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    for each in _alternatives(rules, schema):
        yield from each.get("properties", ())


def show_value(value: Any) -> str:
    """Return a value as an error shows it; "" for a list or mapping."""
    if isinstance(value, dict | list):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def find_unknown_name(name: object, known: Sequence[str]) -> AccountProblem:
    """Return the problem of a name at the top of an accounts file."""
    return AccountProblem(f"there is no such field{say_unknown(str(name), known)}", field=(str(name),), of_name=True)
