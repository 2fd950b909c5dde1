"""Dataclasses into JSON and back: exact where right, BadFile naming the key where not."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli import schema
from sdcli.errors import BadFile


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str
    size: tuple[int, int] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    share: float
    mode: Literal["a", "b"] = "a"
    maybe: str | None = None
    either: int | str = 0
    many: tuple[Inner, ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None
    before: int = schema.renamed("from", default=0)
    pixels: bytes = schema.transient(default=b"")


text = st.text(max_size=8)
inners = st.builds(Inner, name=text, size=st.tuples(st.integers(), st.integers()))
outers = st.builds(
    Outer,
    count=st.integers(),
    share=st.floats(allow_nan=False, allow_infinity=False),
    mode=st.sampled_from(["a", "b"]),
    maybe=st.none() | text,
    either=st.integers() | text,
    many=st.lists(inners, max_size=3).map(tuple),
    table=st.dictionaries(text, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    before=st.integers(),
)


@settings(deadline=None, derandomize=True)
@given(outers)
def test_a_value_is_the_same_after_json(value: Outer) -> None:
    assert schema.from_json(Outer, json.loads(json.dumps(schema.to_json(value)))) == value


def test_live_fields_are_left_out_and_renamed_ones_keep_their_key() -> None:
    written = schema.to_json(Outer(count=1, share=0.5, before=7, pixels=b"abc"))
    assert written["from"] == 7
    assert not {"before", "pixels"} & set(written)


def test_what_json_cannot_say_becomes_null() -> None:
    assert schema.to_json([math.nan, math.inf, 1.0]) == [None, None, 1.0]


def test_unknown_keys_are_ignored() -> None:
    assert schema.from_json(Inner, {"name": "x", "novel": 1}) == Inner(name="x")


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"share": 1.0}, "Outer: count is missing"),
        ({"count": "1", "share": 1.0}, 'Outer: count should be a whole number, not "1"'),
        ({"count": True, "share": 1.0}, "Outer: count should be a whole number, not true"),
        ({"count": 1, "share": 1, "mode": "c"}, "Outer: mode should be one of "),
        (
            {"count": 1, "share": 1, "many": [{"name": "x", "size": [1]}]},
            "Outer: many[0].size should have 2 values, not 1",
        ),
        ({"count": None, "share": 1}, "Outer: count should be a whole number, not null"),
        ({"count": 1, "share": 1, "table": []}, "Outer: table should be an object, not a list"),
        ([], "Outer: it should be an object, not a list"),
    ],
)
def test_a_wrong_shape_names_the_key(data: Any, key: str) -> None:
    with pytest.raises(BadFile) as caught:
        schema.from_json(Outer, data)
    assert key in caught.value.message


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["count", "share", "mode", "many", "table", "name", "size", "from"]), inner, max_size=8),
                    max_leaves=20))  # fmt: skip
def test_any_json_is_a_value_or_a_bad_file(data: Any) -> None:
    with contextlib.suppress(BadFile):
        assert isinstance(schema.from_json(Outer, data), Outer)
