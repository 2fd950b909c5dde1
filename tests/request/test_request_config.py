"""Config, environment and prompt files are data: a value or a typed error, whatever stands in them."""

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.request import config, jobs, prompt_files
from sdcli.request.request import LARGEST_SEED, Request

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
        values = config.from_table(table)
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


def test_a_value_over_several_lines_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('# mine\nnegative_prompt = """\nsteps = 3\n"""\nsteps = 9 # few\n')
    config.set_value(path, "steps", "30")
    assert path.read_text() == '# mine\nnegative_prompt = """\nsteps = 3\n"""\nsteps = 30 # few\n'
    config.set_value(path, "negative_prompt", "x")
    assert path.read_text() == '# mine\nnegative_prompt = "x"\nsteps = 30 # few\n'
    config.unset_value(path, "negative_prompt")
    assert path.read_text() == "# mine\nsteps = 30 # few\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "steps = 30\n"),
        ("guidance = 5", "guidance = 5\nsteps = 30\n"),
        ("guidance = 5\r\n", "guidance = 5\r\nsteps = 30\r\n"),
        ("steps = 1 # '#'\r\n# end\r\n", "steps = 30 # '#'\r\n# end\r\n"),
        ('"steps"=1', '"steps"=30'),
        ("guidance = 5\r\nsteps = 1", "guidance = 5\r\nsteps = 30"),
        ("guidance = 5\r\nmodel = 'x'", "guidance = 5\r\nmodel = 'x'\nsteps = 30\r\n"),
        ("[pins]\nplacement = 'disk'\n", "steps = 30\n\n[pins]\nplacement = 'disk'\n"),
        ("guidance=5\r\n\r\n[pins]\r\nvae='cpu'\r\n", "guidance=5\r\nsteps = 30\r\n\r\n[pins]\r\nvae='cpu'\r\n"),
        ("# mine\n\n[pins] # few\nvae='cpu'\n", "# mine\nsteps = 30\n\n[pins] # few\nvae='cpu'\n"),
        ("lora = [\n  'a', # [x]\n  'steps = 1',\n]\n", "lora = [\n  'a', # [x]\n  'steps = 1',\n]\nsteps = 30\n"),
        ("model = 'a\u2028b'\n", "model = 'a\u2028b'\nsteps = 30\n"),
    ],
)
def test_only_the_line_that_is_set_changes(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(before.encode())
    config.set_value(path, "steps", "30")
    assert path.read_bytes().decode() == after


@settings(QUICK, max_examples=400)
@given(
    st.lists(
        st.sampled_from(
            ["steps = 3", "steps = 3 # x", "# steps = 4", 'model = "a # b"', "lora = [", "'x',", "]", "[pins]",
             "[folders]", "placement = 'disk'", "", 'output = """', '"""',
             "negative_prompt = '''", "'''", "steps.x = 1"]
        ),
        max_size=8,
    )
)  # fmt: skip
def test_whatever_is_in_the_file_setting_a_value_changes_that_value_alone(lines: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text("\n".join(lines))
        before = path.read_bytes()
        try:
            before = config.read_toml(path)
            config.set_value(path, "steps", "7")
        except Usage:
            assert path.read_bytes() == before
            return
        assert config.read_toml(path) == {**before, "steps": 7}


def test_settings_behind_a_symbolic_link_are_changed_where_they_are(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("steps = 3\n")
    real.chmod(0o640)
    link = tmp_path / "config.toml"
    try:
        link.symlink_to(real)
    except OSError:
        pytest.skip("no symbolic links here")
    config.set_value(link, "steps", "4")
    assert link.is_symlink() and real.read_text() == "steps = 4\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "dotfiles.toml"]


def test_a_key_that_is_a_pattern_is_only_a_key(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("'s.*(' = 1\nsteps = 2\n")
    config.unset_value(path, "s.*(")
    assert path.read_text() == "steps = 2\n"


def test_a_folder_in_the_place_of_the_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SdcliError) as caught:
        config.set_value(tmp_path / "file" / "config.toml", "steps", "3")
    assert caught.value.code in (2, 7)


# --- mistakes and their places


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model = 'x'\nstpes = 3\n", 'config.toml:2: no setting "stpes"; near: steps'),
        ("\n\nsteps = 'many'\n", "config.toml:3: --steps"),
        ("steps = 3\nsteps = 4\n", "config.toml:2: Cannot overwrite"),
        ("steps = 3\n[\n", "config.toml:2:"),
        ("model = 'x'\nlora = [1]\n", "config.toml:2: lora"),
        ("a = 1\nseeds = 3\n", "no setting"),
        ("guidance = nan\n", "--guidance"),
        ("sampler = 'euler b'\n", "near: Euler"),
        ("steps = 1979-05-27\n", "--steps"),
        ("x = " + "[" * 5000, "config.toml"),
        ("x = " + "9" * 5000, "config.toml"),
    ],
)
def test_a_mistake_in_the_file_is_reported_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content)
    with pytest.raises(Usage) as caught:
        config.from_user(path)
    assert words in caught.value.message


def test_text_that_is_not_utf_8_is_reported_with_its_line_but_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"steps = 3\nmodel = '\xff'\n")
    with pytest.raises(Usage, match=r"config\.toml:2: not UTF-8"):
        config.from_user(path)
    path.write_bytes(b"\xef\xbb\xbfsteps = 3\n")
    assert config.from_user(path) == {"steps": 3}


def test_a_mistake_in_the_environment_names_its_variable() -> None:
    with pytest.raises(Usage, match="SDCLI_STEPS"):
        config.from_environment({"SDCLI_STEPS": "many"})
    with pytest.raises(Usage, match="SDCLI_STPES is not a setting; near: SDCLI_STEPS"):
        config.from_environment({"SDCLI_STPES": "3"})
    with pytest.raises(Usage, match="SDCLI_PROMPTS is not a setting"):
        config.from_environment({"SDCLI_PROMPTS": "a cat"})


def test_an_empty_variable_and_the_home_folder_set_nothing() -> None:
    assert config.from_environment({"SDCLI_STEPS": "", "SDCLI_HOME": "/x", "STEPS": "3"}) == {}


# --- the order of sources


def test_each_source_wins_over_those_before_it() -> None:
    order = ("user", "environment", "preset", "settings_from", "flag")
    for last in range(len(order)):
        sources = config.Sources(**{name: {"steps": 10 + at} for at, name in enumerate(order[: last + 1])})
        values, origins = config.resolve(sources, family={"steps": 1}, model={"steps": 2})
        assert values["steps"] == 10 + last
        assert origins["steps"] == order[last].replace("_", "-")
    assert config.resolve(config.Sources(), family={"steps": 1}, model={"steps": 2}) == (
        {"steps": 2},
        {"steps": "model"},
    )


def test_pins_are_merged_slot_by_slot() -> None:
    sources = config.Sources(
        user={"pins": {"placement": "disk", "vae": "whole"}},
        environment={"dtype": "bf16"},
        flag={"pins": {"vae": "cpu"}},
    )
    values, origins = config.resolve(sources, family={}, model={})
    assert values["pins"] == {"placement": "disk", "vae": "cpu", "dtype": "bf16"}
    assert origins["pins"] == "flag"


def test_a_list_of_seeds_decides_the_number_of_images_over_earlier_sources_only() -> None:
    earlier = config.Sources(user={"num_images": 4}, flag={"seeds": (1, 5, 9)})
    values, origins = config.resolve(earlier, family={}, model={})
    assert (values["num_images"], origins["num_images"]) == (3, "flag")
    same = config.Sources(flag={"num_images": 4, "seeds": (1, 5, 9)})
    assert config.resolve(same, family={}, model={})[0]["num_images"] == 4
    one = config.Sources(user={"num_images": 4}, flag={"seeds": (7,)})
    assert config.resolve(one, family={}, model={})[0]["num_images"] == 4


def test_size_stands_for_width_and_height() -> None:
    sources = config.Sources(user={"width": 512, "height": 512}, flag={"size": (1024, 768)})
    values, _ = config.resolve(sources, family={}, model={})
    assert (values["width"], values["height"]) == (1024, 768)


# --- presets


SHIPPED = config.presets(Path("nowhere"))


def test_presets_are_shipped() -> None:
    assert {"mlperf", "lcm", "turbo", "draft"} <= {preset.name for preset in SHIPPED}


@pytest.mark.parametrize("preset", SHIPPED, ids=lambda preset: preset.name)
def test_a_shipped_preset_says_what_it_is_for_and_makes_jobs(preset: config.Preset) -> None:
    assert preset.description
    sources = config.Sources(preset=config.from_preset(preset.name, Path("nowhere")))
    values, _ = config.resolve(sources, family={}, model={})
    request = Request(prompts=("a cat",), seeds=(1,), **values)
    jobs.check(request)
    assert len(jobs.make_jobs(request)) == 1


def test_mlperf_is_what_its_name_promises() -> None:
    values, _ = config.resolve(
        config.Sources(preset=config.from_preset("mlperf", Path("nowhere"))), family={}, model={}
    )  # fmt: skip
    assert (values["model"], values["width"], values["height"]) == ("sdxl", 1024, 1024)
    assert (values["sampler"], values["steps"], values["guidance"]) == ("Euler", 20, 8.0)


def test_a_preset_of_ones_own_hides_a_shipped_one_and_a_broken_one_harms_no_other(tmp_path: Path) -> None:
    (tmp_path / "draft.toml").write_text('description = "mine"\nsteps = 5\n')
    (tmp_path / "broken.toml").write_text("steps = \n")
    assert config.from_preset("draft", tmp_path) == {"steps": 5}
    with pytest.raises(Usage, match=r"broken\.toml:1"):
        config.from_preset("broken", tmp_path)


def test_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="mlperf") as caught:
        config.from_preset("mlpref", tmp_path)
    assert caught.value.hint == "--preset mlperf"
    with pytest.raises(Usage, match="no preset"):
        config.from_preset("../draft", tmp_path / "presets")


def test_a_preset_names_no_other_preset(tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text('preset = "loop"\n')
    with pytest.raises(Usage, match=r"loop\.toml:1"):
        config.from_preset("loop", tmp_path)


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
        ("p.csv", "prompt,seed,seed\na,1,2\n", ":1: more than one column"),
        ("p.csv", "promt\na\n", 'p.csv:1: no column "promt"; near: prompt'),
        ("p.csv", "prompt,colour\n", 'p.csv:1: no column "colour"'),
        ("p.csv", "prompt;seed\na;1\n", 'p.csv:1: no column "prompt;seed"; columns are separated by commas'),
        ("p.txt", "# only a comment\n", "no prompt"),
        ("p.csv", 'prompt\n"a', ":2"),
        ("p.csv", "prompt\na\n" + "b" * 200_000 + "\n", ":3"),
        ("p.jsonl", '{"prompt": "a", "seed": 1e400}\n', ":1"),
        ("p.jsonl", '{"prompt": "a", "seed": "9..1"}\n', ":1"),
        ("p.jsonl", '{"prompt": "a", "guidance": NaN}\n', ":1 is not JSON"),
        ("p.jsonl", '{"prompt": 3}\n', ":1"),
        ("p.jsonl", "[" * 100_000 + "\n", ":1"),
        ("p.txt", "a\n" + "b" * (prompt_files.LONGEST_LINE + 1), ":2 is longer"),
        ("p.txt", "a\n" * 10_001, "more than 10000"),
    ],
)
def test_a_mistake_in_a_prompt_file_names_its_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SdcliError) as caught:
        prompt_files.read(tmp_path / name)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"a \xff cat\n", "a cat\n".encode("utf-16")])
def test_text_in_another_encoding_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(BadFile, match="not UTF-8"):
        prompt_files.read(tmp_path / "p.txt")


def test_lines_are_read_one_at_a_time_as_they_are_asked_for() -> None:
    class Endless(io.StringIO):
        asked = 0

        def readline(self, size: int | None = -1, /) -> str:
            self.asked += 1
            return f"cat {self.asked}\n"

    stream = Endless()
    lines = prompt_files.parse(stream, "stdin", "")
    assert (next(lines).prompt, next(lines).prompt, stream.asked) == ("cat 1", "cat 2", 2)


def test_stdin_mixes_text_and_objects_and_a_brace_alone_is_text() -> None:
    text = 'a cat\r\n\n{"prompt": "a dog", "seed": 3}\n{red|blue} fish\n# a comment\n#\n## another\n#not one\n'
    lines = list(prompt_files.parse(io.StringIO(text, newline=""), "stdin", ""))
    assert [line.prompt for line in lines] == ["a cat", "a dog", "{red|blue} fish", "#not one"]
    assert [line.where for line in lines] == ["stdin:1", "stdin:3", "stdin:4", "stdin:8"]


REQUEST = Request(prompts=("x",), seeds=(5, 6), num_images=2, steps=20)


def test_a_line_has_the_run_s_settings_and_seeds_unless_it_says_otherwise() -> None:
    plain = prompt_files.of_line(REQUEST, prompt_files.Line(prompt="a cat"))
    assert [(job.prompt, job.seed, job.steps, job.id) for job in plain] == [
        ("a cat", 5, 20, None),
        ("a cat", 6, 20, None),
    ]
    own = prompt_files.Line(prompt="b", id="n1", seeds=(100,), settings={"sampler": "heun", "steps": 4})
    line_jobs = prompt_files.of_line(REQUEST, own)
    assert [(job.seed, job.sampler, job.unet_calls, job.id) for job in line_jobs] == [
        (100, "Heun", 7, "n1"),
        (101, "Heun", 7, "n1"),
    ]
    listed = prompt_files.of_line(REQUEST, prompt_files.Line(prompt="b", seeds=(1, 2, 3)))
    assert [job.seed for job in listed] == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        prompt_files.Line(prompt="a", where="p.csv:7", settings={"width": 990}),
        prompt_files.Line(prompt="a", where="p.csv:7", settings={"steps": 60, "sampler": "LCM"}),
        prompt_files.Line(prompt="\ud800", where="p.csv:7"),
        prompt_files.Line(prompt="a", where="p.csv:7", seeds=(LARGEST_SEED,)),
    ],
)
def test_a_value_out_of_range_in_a_line_names_the_line(line: prompt_files.Line) -> None:
    with pytest.raises(BadFile, match=r"p\.csv:7: "):
        prompt_files.of_line(REQUEST, line)
