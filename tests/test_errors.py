"""Every error has a code with a meaning and a hint, and passes unchanged between processes."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdcli import errors

ROOT = Path(__file__).resolve().parents[1]


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


# --- hints


def calls_of_errors() -> Iterator[tuple[str, ast.Call]]:
    """Every place that raises an error of the registry, or a subclass, with a message."""
    names = {cls.__name__ for cls in every(errors.SdcliError)}
    for path in sorted((ROOT / "sdcli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}", node


def every(cls: type[errors.SdcliError]) -> Iterator[type[errors.SdcliError]]:
    for one in cls.__subclasses__():
        yield one
        yield from every(one)


def has_a_way_out(call: ast.Call) -> bool:
    usual = next(cls.usual_hint for cls in every(errors.SdcliError) if cls.__name__ == ast.unparse(call.func))
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "hint"), None)
    return bool(usual) if given is None else not (isinstance(given, ast.Constant) and not given.value)


def test_every_error_has_a_line_to_try() -> None:
    from sdcli.models import folder, hub  # noqa: F401  (they define subclasses)

    found = list(calls_of_errors())
    assert len(found) > 300
    # who stopped it needs no hint
    stopped = ("Interrupted", "Cancelled", "Terminated")
    assert [place for place, call in found if not has_a_way_out(call) and not place.endswith(stopped)] == []
