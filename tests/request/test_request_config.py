"""Config, environment and prompt files are data: a value or a typed error, whatever stands in them."""

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdcli.errors import SdcliError, Usage
from sdcli.request import config, prompt_files

NAMES = st.sampled_from([*config.SETTINGS, "stpes", "", "__class__", "folders"])
TEXT = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["1", "-1", "1e9", "nan", "inf", "64x64", "png", "a=b"]
)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
QUICK = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(QUICK, max_examples=1500)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_table_is_settings_or_a_usage_error(table: dict[str, Any]) -> None:
    try:
        values = config.from_table(table, "config.toml")
        config.resolve(config.Sources(user=values), family={}, model={})
    except Usage as error:
        assert error.hint
        assert all(ord(character) >= 32 for character in error.message)


@settings(QUICK, max_examples=700)
@given(content=st.binary(max_size=80) | st.text(st.sampled_from("steps=1\n\"'[]{}#.,\\"), max_size=60).map(str.encode))
def test_any_file_is_settings_or_a_usage_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    try:
        config.from_user(path)
    except Usage as error:
        assert "config.toml" in error.message


@settings(QUICK, max_examples=500)
@given(
    st.dictionaries(NAMES.map(lambda name: f"SDCLI_{name.upper()}"), TEXT.filter(lambda t: "\0" not in t), max_size=3)
)
def test_any_environment_is_settings_or_a_usage_error(environment: dict[str, str]) -> None:
    try:
        config.from_environment(environment)
    except Usage as error:
        assert error.hint


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"#" * (config.LARGEST_FILE + 1))
    with pytest.raises(Usage, match="1 MiB"):
        config.read_toml(path)


# --- changing a file

KEPT = '# mine\nguidance = 6.5 # calm\n\n[folders]\nmine = "x"\n'


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "30", 30),
        ("guidance", "4.5", 4.5),
        ("offline", "yes", True),
        ("max_vram", "6GB", 6 * 10**9),
        ("negative_prompt", 'say "no"\\ \t[x]\n= 猫', 'say "no"\\ \t[x]\n= 猫'),
        ("pins", "placement=disk", {"placement": "disk"}),
        ("size", "64x128", (64, 128)),
    ],
)
def test_a_value_set_is_the_value_read_and_the_rest_stays(tmp_path: Path, name: str, text: str, value: Any) -> None:
    path = tmp_path / "config.toml"
    path.write_text(KEPT)
    before = tomllib.loads(KEPT)
    config.set_value(path, name, text)
    assert config.from_user(path)[name] == value
    after = tomllib.loads(path.read_text())
    assert {key: item for key, item in after.items() if key != name} == {k: v for k, v in before.items() if k != name}
    assert "# mine" in path.read_text()
    config.unset_value(path, name)
    assert name not in config.from_user(path)


@settings(QUICK, max_examples=300)
@given(TEXT)
def test_no_value_can_write_a_second_setting(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        try:
            config.set_value(path, "negative_prompt", text)
        except Usage:
            return
        assert config.from_user(path) == {"negative_prompt": text}


def test_a_value_over_several_lines_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('negative_prompt = """\nsteps = 3\n"""\n')
    with pytest.raises(Usage):
        config.set_value(path, "negative_prompt", "x")
    assert path.read_text() == 'negative_prompt = """\nsteps = 3\n"""\n'


# --- files of prompts


@settings(QUICK, max_examples=700)
@given(
    content=st.text(st.sampled_from('{}":,promtseed1\n\\[]ab'), max_size=60) | TEXT,
    suffix=st.sampled_from(["", ".txt", ".jsonl", ".csv"]),
)
def test_any_prompt_file_is_lines_or_a_typed_error(content: str, suffix: str) -> None:
    try:
        for line in prompt_files.parse(io.StringIO(content), "prompts", suffix):
            assert line.prompt.strip()
    except SdcliError as error:
        assert error.code == 9
        assert error.hint


def test_each_form_of_file_gives_the_same_lines(tmp_path: Path) -> None:
    row = {"prompt": 'a "red" cat, sitting', "id": "x1", "seed": "5", "steps": "7", "width": "64"}
    (tmp_path / "p.jsonl").write_text(json.dumps({**row, "seed": 5, "steps": 7, "width": 64}) + "\n\n")
    quoted = '"' + row["prompt"].replace('"', '""') + '"'
    (tmp_path / "p.csv").write_text(f"prompt,id,seed,steps,width\n{quoted},x1,5,7,64\n")
    (one,), (two,) = prompt_files.read(tmp_path / "p.jsonl"), prompt_files.read(tmp_path / "p.csv")
    assert one == two
    assert (one.id, one.seeds, dict(one.settings)) == ("x1", (5,), {"steps": 7, "width": 64})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "prompt,colour\na,red\n", "colour"),
        ("p.csv", "prompt,seed\na\n", "columns"),
        ("p.csv", "id\nx\n", "no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "steps": "many"}\n', ":2"),
        ("p.jsonl", "[1]\n", "JSON object"),
        ("p.txt", "\n\n", "no prompt"),
    ],
)
def test_a_mistake_in_a_prompt_file_names_its_place(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SdcliError) as caught:
        prompt_files.read(tmp_path / name)
    assert words in caught.value.message
