"""The registry of errors is the table of design, and an error survives crossing a process."""

import json

import pytest

from sdcli import errors


def test_every_error_has_a_code_with_a_meaning() -> None:
    assert {cls.code for cls in errors.REGISTRY.values()} | {0} == set(errors.MEANINGS)


@pytest.mark.parametrize("cls", errors.REGISTRY.values(), ids=lambda cls: cls.type)
def test_an_error_is_the_same_after_json(cls: type[errors.SdcliError]) -> None:
    before = cls("what happened", done="what was kept", hint="sdcli doctor", need=6, free=3)
    after = errors.from_json(json.loads(json.dumps(before.to_json())))
    assert type(after) is cls
    assert after.to_json() == before.to_json()


def test_an_unknown_type_from_another_process_is_a_bug_with_its_message() -> None:
    error = errors.from_json({"type": "novel", "message": "strange", "details": 3})
    assert (error.code, error.message, error.details) == (1, "strange", {})
