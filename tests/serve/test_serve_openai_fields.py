"""What a body of OpenAI's API may hold, by every name that clients have for it, and how what is wrong is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.request.config import SETTINGS, from_flags
from sdcli.serve.bodies import BadBody
from sdcli.serve.bounds import Bounds
from sdcli.serve.openai_fields import FIELDS, IGNORED, REFUSED, Asked, asked, from_parts, schema

CAT = {"prompt": "a cat"}
# One value that is right for each field, by its kind or its name.
RIGHT: dict[str, Any] = {
    "integer": 2, "number": 0.5, "switch": True, "text": "Euler", "size": "64x128", "lora": "ink", "seed": 7,
    "control": {"model": "canny", "image": "AAAA"}, "outpaint": "left:64",
    "hires": 1.5, "image_guidance": 1.5, "width": 64, "height": 128,
}  # fmt: skip


def right(field: Any) -> Any:
    return field.choices[-1] if field.choices else RIGHT.get(field.name, RIGHT[field.kind])


def of(body: dict[str, Any], edits: bool = False) -> Asked:
    return asked({**CAT, **body}, edits)


@pytest.mark.parametrize("name", [name for field in FIELDS for name in (field.name, *field.also)])
def test_every_name_sets_what_it_says_in_json_and_in_a_form(name: str) -> None:
    field = next(field for field in FIELDS if name in (field.name, *field.also))
    beside = {"stream": True} if name == "partial_images" else {}
    beside |= {"output_format": "webp"} if name == "output_compression" else {}
    body = {**beside, name: right(field)}
    found = of(body, edits=True)
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in {**CAT, **body}.items()}
    assert asked(from_parts(text.items()), edits=True) == found
    assert found != of(beside, edits=True)
    if field.setting:
        assert field.setting in found.typed and field.setting in SETTINGS
        from_flags({name: value for name, value in found.typed.items() if name == field.setting})  # it is understood
        assert found.given[field.setting] == name


@pytest.mark.parametrize(
    ("body", "setting", "text"),
    [
        ({"num_inference_steps": 9}, "steps", "9"), ({"step": 9.0}, "steps", "9"), ({"n": 3.0}, "num_images", "3"),
        ({"guidance_scale": 7.5}, "guidance", "7.5"), ({"cfg_scale": 7}, "guidance", "7"),
        ({"guidance": 1e-7}, "guidance", "0.0000001"), ({"seed": 2**32 - 1}, "seeds", "4294967295"),
        ({"size": "512x768"}, "size", "512x768"), ({"output_format": "jpeg"}, "format", "jpg"),
        ({"output_format": "webp", "output_compression": 40}, "quality", "40"),
        ({"lora": ["ink:0.8", {"name": "pencil", "scale": -0.5}, "oil"]}, "prompts",
         ("a cat <lora:ink:0.8> <lora:pencil:-0.5> <lora:oil:1>",)),
        ({}, "num_images", "1"),
    ],
)  # fmt: skip
def test_other_servers_names_become_generates_settings(body: dict[str, Any], setting: str, text: Any) -> None:
    assert of(body).typed[setting] == text


@pytest.mark.parametrize("field", [field for field in FIELDS if field.null], ids=lambda field: field.name)
def test_null_is_as_if_it_were_not_there(field: Any) -> None:
    assert of({field.name: None}, edits=True) == of({}, edits=True)


def test_what_moves_nothing_is_ignored_and_said() -> None:
    found = of({"user": "me", "quality": "auto", "style": "vivid", "moderation": None, "background": "opaque"})
    assert found.ignored == ("user", "style")
    assert {"size", "seeds"}.isdisjoint(of({"size": "auto", "seed": -1}).typed)
    assert not of({"seed": -1}).seeded and of({"seed": 0}).seeded


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"sead": 5}, "sead", "near: seed"),
        ({"stpes": 5}, "stpes", "near: steps"),
        ({"num_inference_step": 5}, "num_inference_step", "near: num_inference_steps"),
        ({"n": "two"}, "n", "whole number, and is text"),
        ({"n": 1.5}, "n", "whole number"),
        ({"n": True}, "n", "whole number, and is true or false"),
        ({"n": 0}, "n", "between 1 and 10"),
        ({"n": 11}, "n", "between 1 and 10"),
        ({"steps": [9]}, "steps", "is a list"),
        ({"guidance_scale": "7"}, "guidance_scale", "a number, and is text"),
        ({"stream": "true"}, "stream", "true or false"),
        ({"seed": 2**32}, "seed", "4294967295"),
        ({"seed": -2}, "seed", "between"),
        ({"size": "large"}, "size", "1024x768"),
        ({"size": "512"}, "size", "WIDTHxHEIGHT"),
        ({"size": "512x512", "width": 64}, "width", "say the same"),
        ({"steps": 9, "num_inference_steps": 9}, "num_inference_steps", "one of them"),
        ({"output_format": "gif"}, "output_format", "png, jpeg, jpg, webp"),
        ({"output_format": "svg"}, "output_format", "not one of"),
        ({"output_compression": 50}, "output_compression", "png keeps every pixel"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "between 0 and 100"),
        ({"response_format": "file"}, "response_format", "b64_json, url"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"partial_images": 2}, "partial_images", "needs stream"),
        ({"stream": True, "partial_images": 4}, "partial_images", "between 0 and 3"),
        ({"prompt": None}, "prompt", "text, and is null"),
        ({"prompt": ["a cat"]}, "prompt", "text, and is a list"),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": "x" * 8001}, "prompt", "8000 are the most"),
        ({"negative_prompt": "x" * 8001}, "negative_prompt", "8000 are the most"),
        ({"strength": 0.5}, "strength", "/v1/images/edits"),
        ({"image": "AAAA"}, "image", "/v1/images/edits"),
        ({"lora": {"name": "ink", "path": "/tmp/ink"}}, "lora", "a path is never taken"),
        ({"lora": {"name": "ink>x<"}}, "lora", "not the name"),
        ({"lora": "ink:heavy"}, "lora", "not a weight"),
        ({"lora": {"name": "ink", "sacle": 1}}, "lora", "sacle"),
        ({"control": {"model": "canny"}}, "control", "{model, image}"),
        ({"control": {"model": "canny", "image": "AAAA", "wieght": 1}}, "control", "near: weight"),
        ({"output": "/tmp"}, "output", "unknown field"),
        ({"dtype": "fp16"}, "dtype", "unknown field"),
        ({"vae_file": "x"}, "vae_file", "unknown field"),
        ({"settings_from": "x"}, "settings_from", "unknown field"),
        *(({name: 2}, name, "not supported") for name in REFUSED),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_name(body: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadBody) as refused:
        of(body)
    assert refused.value.field == param and says in str(refused.value)


def test_a_prompt_has_to_be_there_and_a_part_of_a_form_once() -> None:
    with pytest.raises(BadBody, match="prompt is missing"):
        asked({})
    with pytest.raises(BadBody, match="n is there twice"):
        from_parts([("n", "1"), ("n", "1")])
    for name, text in (("n", "1e1"), ("n", "01"), ("stream", "yes"), ("guidance", "NaN"), ("n", "")):
        with pytest.raises(BadBody, match=name):
            asked(from_parts([("prompt", "a cat"), (name, text)]))
    assert asked(from_parts([("prompt", "a cat"), ("guidance", "1e-05")])).typed["guidance"] == "0.00001"


@pytest.mark.parametrize("edits", [False, True])
def test_the_schema_names_what_is_taken_and_nothing_else(edits: bool) -> None:
    listed = schema(Bounds(images=4), edits)["properties"]
    names = {name for field in FIELDS for name in (field.name, *field.also) if edits or not field.edits}
    files = {"image", "image[]", "mask"} if edits else set()
    assert set(listed) == names | set(IGNORED) | {"background"} | files
    assert listed["n"] == {"description": "Images; seeds count up.", "minimum": 1, "maximum": 4,
                           "type": "integer" if edits else ["integer", "null"]}  # fmt: skip
    assert listed["prompt"]["type"] == "string" and listed["prompt"]["maxLength"] == 8000
    assert json.loads(json.dumps(schema(Bounds(), edits))) == schema(Bounds(), edits)


_NAMES = st.sampled_from([*(name for field in FIELDS for name in (field.name, *field.also)), *IGNORED, *REFUSED, "x"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from(["auto", "64x64", "png", "ink:1", "1", "true", "[1]", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(_NAMES, _VALUES, max_size=6), st.booleans())
def test_whatever_a_body_holds_is_understood_or_refused(body: dict[str, Any], edits: bool) -> None:
    texts = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in {**CAT, **body}.items()]
    for read in (lambda: of(body, edits), lambda: asked(from_parts(texts), edits)):
        try:
            found = read()
        except BadBody as wrong:
            assert str(wrong) and (wrong.field is None or wrong.field in {*body, "prompt"})
        else:
            assert set(found.typed) <= {*SETTINGS}
            assert 1 <= found.images <= 10


def test_the_documentation_has_every_field_and_no_other() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    table = text[text.index("| field |") : text.index("Taken and ignored")]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:] if line.startswith("|")]
    named = {name for row in rows for cell in row for name in re.findall(r"`(\w+)`", cell)}
    assert named == {name for field in FIELDS for name in (field.name, *field.also)} | {"background"}
    rest = text[text.index("Taken and ignored") : text.index("## Edits")]
    assert {*IGNORED, *REFUSED} == set(re.findall(r"`(\w+)`", rest)) - {"ignored", "background"}
