"""What is wrong with a setting or a request is said in words of ours, never in those of pydantic."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from services.admin.web.api import schemas
from shared.field_errors import describe_error
from shared.settings import PREFIX, Settings, SettingsError, load

OF_PYDANTIC = re.compile(r"Input|should|[Vv]alid\b|Value error|[a-z]_[a-z]+ing\b|\^|does not appear")
WRONG: tuple[Any, ...] = ("", "x", "many words!", "9" * 400, 42, -1, 1.5, True, None, [], [1], {}, {"x": 1})


def models() -> Iterator[type[BaseModel]]:
    for module in pkgutil.iter_modules(schemas.__path__):
        for value in vars(importlib.import_module(f"{schemas.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel:
                yield value


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_wrong_setting_is_named_with_what_it_has_to_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"{PREFIX}{name.upper()}"
    for value in (each for each in WRONG if isinstance(each, str) and each):
        monkeypatch.setenv(variable, value)
        try:
            load()
        except SettingsError as error:
            assert str(error).startswith(f"{variable}: ")
            words = str(error).replace(value, "")
            assert "has to " in words and not OF_PYDANTIC.search(words), str(error)


@pytest.mark.parametrize("model", list(models()), ids=lambda model: model.__name__)
def test_a_wrong_field_of_a_request_is_described(model: type[BaseModel]) -> None:
    for body in ([], "x", {"unknown": 1}, *({name: value} for name in model.model_fields for value in WRONG)):
        try:
            model.model_validate(body)
        except ValidationError as error:
            said = [describe_error(problem) for problem in error.errors()]
            assert not [words for words in said if OF_PYDANTIC.search(words)], (body, said)


def test_most_settings_and_requests_can_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = set()
    for name in Settings.model_fields:
        with monkeypatch.context() as patch:
            patch.setenv(f"{PREFIX}{name.upper()}", "many words!")
            try:
                load()
            except SettingsError:
                refused.add(name)
    assert len(refused) > 20 and len(list(models())) > 10
