"""The steps of the fault driver name functions that exist, also after other names change."""

from __future__ import annotations

import importlib

import pytest

from tests.faults.poison import READERS
from tests.faults.steps import STEPS, Step, locate


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.service}: {step.name}")
def test_a_service_is_killed_at_a_function_that_is_there(step: Step) -> None:
    owner, name = locate(step)
    assert callable(getattr(owner, name))


@pytest.mark.parametrize("target", [target for readers in READERS.values() for target in readers.values()])
def test_a_poison_is_read_by_a_function_that_is_there(target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
