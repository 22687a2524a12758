"""The errors of pydantic in the words of this project: what a setting, or a field of a request, has to be. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WHOLE, _NUMBER, _ANSWER = "has to be a whole number", "has to be a number", "has to be yes or no"
_DATE, _TIME = "has to be a date such as 2026-01-31", "has to be a time such as 2026-01-31T12:00:00Z"
_WORDS = {
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "bool_parsing": _ANSWER,
    "bool_type": "has to be true or false",
    "string_type": "has to be a text",
    "string_pattern_mismatch": "has another form",
    "list_type": "has to be a list",
    "dict_type": "has to be an object with fields",
    "model_type": "has to be an object with fields",
    "model_attributes_type": "has to be an object with fields",
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "literal_error": "has to be {expected}",
    "enum": "has to be {expected}",
    "greater_than": "has to be more than {gt}",
    "greater_than_equal": "has to be at least {ge}",
    "less_than": "has to be less than {lt}",
    "less_than_equal": "has to be at most {le}",
    "finite_number": _NUMBER,
    "string_too_short": "has to have at least {min_length} characters",
    "string_too_long": "has to have at most {max_length} characters",
    "too_short": "has to have at least {min_length} entries",
    "too_long": "has to have at most {max_length} entries",
    "json_invalid": "is no JSON: {error}",
    "path_type": "has to be a path",
    "date_from_datetime_parsing": _DATE,
    "date_from_datetime_inexact": _DATE,
    "date_parsing": _DATE,
    "date_type": _DATE,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "datetime_parsing": _TIME,
    "datetime_type": _TIME,
}
"""Words by pydantic's type of an error; names in braces are of its context."""


def describe_error(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value. :param problem: one of pydantic's ``ValidationError.errors()``."""
    words = _WORDS.get(problem["type"])
    if words is None:
        return str(problem["msg"]).removeprefix("Value error, ")
    return words.format_map(problem.get("ctx", {}))
