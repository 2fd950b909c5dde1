"""plan, samplers, config, doctor and help: what they print for people and for machines."""

import json
import re
from pathlib import Path

import pytest
from cli_run import sdcli

from sdcli import schema
from sdcli.plan.plan import Plan
from sdcli.terminal import cells


def test_plan_shows_every_way_and_marks_the_one_it_takes(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "-m", "sdxl", "--as-if", "cuda:8GiB,ram:32")
    assert done.code == 0
    assert sum(line.startswith("▸") for line in done.out.splitlines()) == 1
    assert "6.94 GB to download" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_plan_stays_within_the_terminal(
    columns: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = sdcli(capfd, "plan", "a cat", "-m", "sdxl", "--as-if", "cuda:8GiB")
    assert max(map(len, done.out.splitlines())) <= columns


def test_plan_as_json_is_a_plan_that_reads_back(capfd: pytest.CaptureFixture[str]) -> None:
    data = sdcli(capfd, "plan", "a cat", "-m", "sd15", "--as-if", "cuda:8GiB", "--json").json
    assert data["schema"] == "sdcli.plan/1" and data["fits"] is True
    again = schema.to_json(schema.from_json(Plan, data))
    assert again == data
    assert data["origins"]["steps"] == "family" and data["origins"]["seeds"] == "random"


def test_a_plan_that_does_not_fit_is_code_4_and_still_the_whole_object(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "a cat", "-m", "sdxl", "--as-if", "cuda:1GiB,ram:2", "--pin", "placement=resident")
    done = sdcli(capfd, *words, "--json")
    assert (done.code, done.json["fits"]) == (4, False)
    plain = sdcli(capfd, *words)
    assert plain.code == 4
    assert "error: " in plain.err and "  try: " in plain.err and "GPU GiB" in plain.out


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda", "cuda:", "cuda:0", "cuda:8GiB/9GiB", "cpu,ram", "cpu,ram:-1", "cuda:8XB", "x" * 999]
)
def test_a_machine_that_cannot_be_is_code_2_with_the_valid_forms(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "-m", "sd15", "--as-if", text)
    assert done.code == 2
    assert "cuda:" in done.err


def test_samplers_for_people_and_machines(capfd: pytest.CaptureFixture[str]) -> None:
    assert "DPM++ 2M Karras" in sdcli(capfd, "samplers").out
    data = sdcli(capfd, "samplers", "--json").json
    assert data["schema"] == "sdcli.samplers/1" and len(data["samplers"]) == 23


def test_a_setting_is_kept_shown_used_and_forgotten(own_folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path(sdcli(capfd, "config", "path").out.strip())
    assert path.parent == own_folders / "config"
    path.parent.mkdir()
    path.write_text("# mine\nguidance = 6.5 # calm\n")
    assert sdcli(capfd, "config", "set", "steps", "31").code == 0
    rows = {row["name"]: row for row in sdcli(capfd, "config", "show", "--json").json["values"]}
    assert (rows["steps"]["value"], rows["steps"]["origin"], rows["steps"]["where"]) == (31, "user", str(path))
    plan = sdcli(capfd, "plan", "a cat", "-m", "sd15", "--as-if", "cpu", "--json").json
    assert (plan["request"]["steps"], plan["request"]["guidance"], plan["origins"]["steps"]) == (31, 6.5, "user")
    assert sdcli(capfd, "config", "unset", "steps").code == 0
    assert path.read_text() == "# mine\nguidance = 6.5 # calm\n"


def shown(capfd: pytest.CaptureFixture[str]) -> dict[str, tuple[object, str]]:
    rows = sdcli(capfd, "config", "show", "--json").json["values"]
    return {row["name"]: (row["value"], row["origin"]) for row in rows}


def test_config_show_is_what_a_run_of_the_model_in_force_would_use(
    own_folders: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("width", "height", "steps", "sampler", "guidance")
    for model in ("builtin", "sdxl"):
        if model != "builtin":
            monkeypatch.setenv("SDCLI_MODEL", model)
        plan = sdcli(capfd, "plan", "a cat", "--as-if", "cpu", "--json").json
        rows = shown(capfd)
        assert {name: rows[name] for name in names} == {
            name: (plan["request"][name], plan["origins"][name]) for name in names
        }
    assert rows["width"] == (1024, "family") and rows["model"] == ("sdxl", "environment")
    assert rows["format"] == ("png", "default")


def test_config_show_still_shows_a_model_that_is_not_there(
    own_folders: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_MODEL", "nope")
    rows = shown(capfd)
    assert rows["model"] == ("nope", "environment") and rows["steps"][0] is None
    assert 'no model "nope"' in sdcli(capfd, "config", "show").err


@pytest.mark.parametrize("line", ["stepz = 3", 'steps = "many"', "width = 100.5"])
def test_a_wrong_line_of_the_config_is_a_problem_for_doctor_and_the_hint_mends_it(
    line: str, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (own_folders / "config").mkdir()
    (own_folders / "config" / "config.toml").write_text(line + "\n")
    told = sdcli(capfd, "doctor", "--json")
    assert told.code in (2, 8) and "config" in [problem["code"] for problem in told.json["problems"]]
    shown = sdcli(capfd, "config", "show")
    hint = shown.err.split("try: ")[1].split()
    assert shown.code == 2 and hint[:3] == ["sdcli", "config", "unset"]
    assert sdcli(capfd, *hint[1:]).code == 0
    assert sdcli(capfd, "config", "show").code == 0


@pytest.mark.parametrize(
    ("name", "value"), [("stpes", "3"), ("steps", "many"), ("steps", "3\nmodel='x'"), ("prompts", "x")]
)
def test_what_is_no_setting_is_not_kept(
    name: str, value: str, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sdcli(capfd, "config", "set", name, value).code == 2
    assert not (own_folders / "config" / "config.toml").exists()


def test_the_sources_win_in_their_order(
    own_folders: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_folders = own_folders / "config"
    own_folders.mkdir()
    (own_folders / "config.toml").write_text('steps = 11\nguidance = 1.1\nsampler = "ddim"\n')
    (own_folders / "presets").mkdir()
    (own_folders / "presets" / "mine.toml").write_text('description = "x"\nguidance = 3.3\nsampler = "heun"\n')
    monkeypatch.setenv("SDCLI_GUIDANCE", "2.2")
    words = ("plan", "a cat", "-m", "sd15", "--as-if", "cpu", "--preset", "mine", "--sampler", "unipc", "--json")
    plan = sdcli(capfd, *words).json
    request, origins = plan["request"], plan["origins"]
    assert (request["steps"], request["guidance"], request["sampler"]) == (11, 3.3, "UniPC")
    assert (origins["steps"], origins["guidance"], origins["sampler"]) == ("user", "preset", "flag")


def test_an_unknown_variable_of_ours_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_STPES", "3")
    done = sdcli(capfd, "plan", "a cat")
    assert done.code == 2 and "SDCLI_STEPS" in done.err


def test_a_broken_config_names_its_file_and_line(own_folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (own_folders / "config").mkdir()
    (own_folders / "config" / "config.toml").write_text("steps = 3\nsteps = 4\n")
    done = sdcli(capfd, "plan", "a cat")
    assert done.code == 2 and "config.toml:2: " in done.err


def test_every_shipped_preset_plans(capfd: pytest.CaptureFixture[str]) -> None:
    from sdcli.request import config

    found = config.presets(Path("none"))
    assert {"mlperf", "lcm"} <= {preset.name for preset in found}
    for preset in found:
        assert preset.description
        done = sdcli(capfd, "plan", "a cat", "-m", "sdxl", "--as-if", "cuda:24GiB", "--preset", preset.name, "--json")
        assert done.json["fits"], preset.name


@pytest.mark.parametrize("topic", ["exit-codes", "environment", "memory", "formats", "json"])
def test_help_has_its_topics_in_80_columns(topic: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "help", topic)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80, [line for line in done.out.splitlines() if len(line) > 80]


def test_the_environment_topic_names_variables_that_work(capfd: pytest.CaptureFixture[str]) -> None:
    from sdcli.request import config

    named = set(re.findall(r"SDCLI_[A-Z_]+", sdcli(capfd, "help", "environment").out)) - {"SDCLI_HOME"}
    assert named == {f"SDCLI_{name.upper()}" for name in config.SETTINGS if name not in config.NOT_KEPT} - {
        "SDCLI_PREVIEW_EVERY"
    }


def test_doctor_is_one_object_with_json(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "doctor", "--json")
    assert done.code in (0, 8)
    assert done.json["schema"] == "sdcli.doctor/1"
    assert json.dumps(done.json)


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["plan"], ["samplers"], ["inspect-unet"], ["doctor"], ["config"], ["help"]]
)
def test_every_command_has_help(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, *command, "--help")
    assert done.code == 0
    assert "Usage: sdcli" in done.out


def test_presets_are_listed_with_ones_own(own_folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (own_folders / "config" / "presets").mkdir(parents=True)
    (own_folders / "config" / "presets" / "mine.toml").write_text('description = "calm"\nsteps = 9\n')
    done = sdcli(capfd, "presets")
    assert "mine          calm" in done.out and "lcm " in done.out and "presets/NAME.toml" in done.err
    data = sdcli(capfd, "presets", "--json").json
    assert data["schema"] == "sdcli.presets/1"
    assert {"name", "description", "path"} == set(data["presets"][0])


@pytest.mark.parametrize("words", [("bench",), ("bench", "compare")])
def test_the_help_of_bench_is_in_groups_too(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, *words, "--help")
    groups = re.findall(r"^(\w+):$", done.out, re.MULTILINE)
    assert groups[:2] == (["Everyday", "Prompt"] if len(words) == 1 else ["Measure", "Everyday"])
    assert ("Commands" in groups) == (words == ("bench",))


def test_the_help_of_generate_is_in_groups_the_everyday_options_first(capfd: pytest.CaptureFixture[str]) -> None:
    groups = re.findall(r"^(\w+):$", sdcli(capfd, "generate", "--help").out, re.MULTILINE)
    assert groups == ["Everyday", "Prompt", "Image", "Model", "Memory", "Output", "Options"]


@pytest.mark.parametrize(
    ("typed", "offered"), [("DPM++", "DPM++\\ 2M\\ Karras"), ('"DPM++', "DPM++ 2M Karras"), ("Eul", "Euler\\ a")]
)
def test_a_name_with_spaces_completes_as_one_word_in_bash(
    typed: str, offered: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SDCLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"sdcli generate --sampler {typed}")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert offered in sdcli(capfd).out.splitlines()


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize(
    "words",
    [
        "--help", "generate --help", "bench --help", "doctor", "samplers", "presets", "config show", "help",
        "help memory", "help formats", "help environment", "help exit-codes", "help json", "inspect-unet sd15",
    ],
)  # fmt: skip
def test_screens_fold_between_words(
    words: str, columns: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(width: int) -> tuple[list[str], list[str]]:
        monkeypatch.setenv("COLUMNS", str(width))
        done = sdcli(capfd, *words.split())
        assert done.code in (0, 8)
        return done.out.splitlines(), done.out.split()

    (lines, narrow), (_, wide) = read(columns), read(100)
    if not words.startswith("inspect"):  # the U is drawn to measure
        signs = "(),.;"
        whole = {word.strip(signs) for word in wide}
        assert not [word for word in narrow if not re.search(r"\d", word) and word.strip(signs) not in whole]
    assert not any(word.endswith("…") for word in narrow if word not in wide)
    if columns == 60:
        assert all(cells(line) <= 60 or max(map(cells, line.split())) > 40 for line in lines)  # a path stays whole
