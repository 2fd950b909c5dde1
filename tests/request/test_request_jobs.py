"""Seeds, sizes and jobs: exact where right, a sentence with a fix where not."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.errors import SdcliError, Usage
from sdcli.request import jobs, prompt_files, samplers
from sdcli.request.request import LARGEST_SEED, PER_IMAGE, Request

ANY = st.text(st.characters(codec=None), max_size=40) | st.text(st.sampled_from("0123456789.,-x×GMiB "), max_size=20)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", (7,)),
        ("1,5,9", (1, 5, 9)),
        ("1..4", (1, 2, 3, 4)),
        ("3, 8..9", (3, 8, 9)),
        ("4294967295", (LARGEST_SEED,)),
        ("-1", ()),  # a random one
    ],
)
def test_seeds_are_a_number_a_list_or_a_range_with_both_ends(text: str, seeds: tuple[int, ...]) -> None:
    assert jobs.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "-2", "1,-1", "1.5", "a", "9..1", str(2**32), str(2**70), "1..99999999", "1,,2", "٣"]
)
def test_what_is_not_a_seed_is_refused(text: str) -> None:
    with pytest.raises(Usage) as caught:
        jobs.parse_seeds(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [("6", 6 * 2**30), ("6GiB", 6 * 2**30), ("6.5 gib", 13 * 2**29), ("6GB", 6 * 10**9), ("500MiB", 500 * 2**20)],
)
def test_memory_is_in_gib_unless_a_unit_says_otherwise(text: str, size: int) -> None:
    assert jobs.parse_memory(text) == size


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(ANY)
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    for parse in (jobs.parse_seeds, jobs.parse_sides, jobs.parse_memory, samplers.find):
        try:
            parse(text)  # type: ignore[operator]
        except Usage as error:
            assert error.hint
            assert all(ord(character) >= 32 for character in error.message)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(
    st.text(st.sampled_from("abc()[]:1.5 \\,BREAK"), max_size=30), st.integers(), st.integers(-9000, 9000), st.floats()
)
def test_any_request_is_within_its_ranges_or_refused(prompt: str, steps: int, width: int, guidance: float) -> None:
    request = Request(prompts=(prompt,), seeds=(1,), steps=steps, width=width, guidance=guidance)
    try:
        jobs.check(request)
    except Usage as error:
        assert error.hint
    else:
        assert prompt.strip() and 1 <= steps <= 10_000 and width % 8 == 0 and 0 <= guidance <= 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 990}, "984 and 992"),
        ({"steps": 0}, "--steps 0"),
        ({"prompts": ("",)}, "empty"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"height": 20_000}, "--height"),
        ({"clip_skip": 0}, "--clip-skip"),
        ({"batch_size": 0}, "--batch-size"),
        ({"steps": 10_001}, "--steps 10001"),
        ({"guidance": float("inf")}, "--guidance"),
        ({"guidance": -0.5}, "--guidance"),
        ({"clip_skip": 13}, "--clip-skip"),
        ({"width": -8}, "--width"),
        ({"prompts": ("a", " \t")}, "empty"),
        ({"prompts": ("a\0b",)}, "NUL"),
        ({"negative_prompt": "\udcff"}, "Unicode"),
        ({"prompts": ("x" * 20_001,)}, "20000"),
        ({"emphasis": "strong"}, "--emphasis"),
        ({"format": "gif"}, "--format"),
        ({"metadata": "some"}, "--metadata"),
        ({"seeds": (-1,)}, "--seed -1"),
        ({"seeds": tuple(range(10_001))}, "10000 images"),
    ],
)
def test_a_value_out_of_range_names_its_flag_and_what_would_do(change: dict[str, object], words: str) -> None:
    request = Request(**{"prompts": ("a cat",), "seeds": (1,), **change})  # type: ignore[arg-type]
    with pytest.raises(Usage) as caught:
        jobs.check(request)
    assert words in caught.value.message
    assert caught.value.hint


# --- seeds into jobs


def test_one_seed_counts_up_over_the_images() -> None:
    assert jobs.resolve_seeds((7,), 3) == ((7, 8, 9), False)


def test_seed_zero_is_a_seed() -> None:
    assert jobs.resolve_seeds((0,), None) == ((0,), False)


def test_without_a_seed_one_is_drawn_that_leaves_room() -> None:
    seeds, drawn = jobs.resolve_seeds((), 4, draw=lambda below: below - 1)
    assert drawn and seeds[-1] == LARGEST_SEED


def test_a_list_of_seeds_conflicts_with_another_number_of_images() -> None:
    assert jobs.resolve_seeds((1, 5), 2) == ((1, 5), False)
    with pytest.raises(Usage):
        jobs.resolve_seeds((1, 5), 3)


@pytest.mark.parametrize("number", [0, -3, 10_001, 10**12])
def test_a_number_of_images_out_of_range_is_refused_before_any_seed_is_made(number: int) -> None:
    with pytest.raises(Usage, match="--num-images"):
        jobs.resolve_seeds((1,), number)


def test_the_last_seed_leaves_room_for_one_image() -> None:
    assert jobs.resolve_seeds((LARGEST_SEED,), 1) == ((LARGEST_SEED,), False)
    with pytest.raises(Usage, match="leaves fewer than 2 seeds"):
        jobs.resolve_seeds((LARGEST_SEED,), 2)


def test_a_random_seed_is_another_each_time() -> None:
    assert len({jobs.resolve_seeds((), None)[0] for _ in range(20)}) > 1


def test_a_run_of_too_many_jobs_is_refused_without_making_them_all() -> None:
    job = jobs.make_jobs(Request(prompts=("a",), seeds=(1,)))[0]
    assert [one.index for one in jobs.renumbered([job, job])] == [0, 1]
    with pytest.raises(Usage, match="10000"):
        jobs.renumbered(itertools.repeat(job))


def test_prompts_are_outer_and_seeds_inner() -> None:
    four = jobs.make_jobs(Request(prompts=("a", "b"), seeds=(1, 2), sampler="heun", steps=10))
    assert [(job.index, job.prompt, job.seed) for job in four] == [(0, "a", 1), (1, "a", 2), (2, "b", 1), (3, "b", 2)]
    assert (four[0].sampler, four[0].unet_calls) == ("Heun", 19)


# --- a forgotten quote


def test_several_prompts_of_one_word_are_a_forgotten_quote() -> None:
    error = jobs.forgotten_quotes(("a", "red", "cat"))
    assert error is not None
    assert error.message == "3 prompts of one word each look like one sentence without quotes"
    assert error.hint == '"a red cat"      (or -p a -p red -p cat to mean three)'


def test_a_forgotten_quote_is_repaired_with_signs_quoted() -> None:
    error = jobs.forgotten_quotes(("it's", "$5"))
    assert error is not None
    line, _, other = error.hint.partition("      (or ")
    assert shlex.split(line) == ["it's $5"]
    assert shlex.split(other.removesuffix(" to mean two)")) == ["-p", "it's", "-p", "$5"]


def test_a_long_sentence_without_quotes_is_repaired_by_example() -> None:
    error = jobs.forgotten_quotes(("word",) * 12)
    assert error is not None and error.hint == '"' + " ".join(["word"] * 12) + '"'
    error = jobs.forgotten_quotes(("word",) * 900)
    assert error is not None and error.hint == '"a red cat"'


@pytest.mark.parametrize("words", [(), ("cat",), ("a cat", "a dog"), ("cat", "a dog")])
def test_one_word_or_whole_sentences_are_meant(words: tuple[str, ...]) -> None:
    assert jobs.forgotten_quotes(words) is None


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda w: len(w.split()) == 1), min_size=2, max_size=4))
def test_the_repaired_line_is_safe_to_paste(words: list[str]) -> None:
    error = jobs.forgotten_quotes(tuple(words))
    assert error is not None
    assert all(ord(character) >= 32 for character in error.hint)


# --- samplers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("euler a", "Euler a"), ("k_euler_a", "Euler a"), ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("dpm++ 2m karras", "DPM++ 2M Karras"), ("dpmpp_2m_karras", "DPM++ 2M Karras"), ("plms", "PNDM"),
        ("DPMSolverMultistepScheduler", "DPM++ 2M"), ("uni-pc", "UniPC"),
    ],
)  # fmt: skip
def test_a_sampler_answers_to_its_names_elsewhere(name: str, expected: str) -> None:
    assert samplers.find(name).name == expected


def test_every_name_finds_its_own_sampler() -> None:
    for sampler in samplers.EVERY:
        assert {samplers.find(name).name for name in (sampler.name, *sampler.aliases)} == {sampler.name}


@pytest.mark.parametrize("name", ["LMS", "k_lms", "DPM++ SDE", "DPM++ SDE Karras", "DPMSolverSDEScheduler", "iPNDM"])
def test_a_sampler_that_other_programs_have_is_refused_with_the_reason_and_the_closest(name: str) -> None:
    with pytest.raises(Usage, match="is not offered: diffusers") as caught:
        samplers.find(name)
    assert all(samplers.find(near).name in caught.value.message for near in caught.value.details["near"])


@pytest.mark.parametrize(("name", "schedule"), [("DDIM", "Karras"), ("PNDM", "Simple"), ("LCM", "SGM Uniform")])
def test_a_schedule_that_a_sampler_does_not_take_is_refused_with_samplers_that_do(name: str, schedule: str) -> None:
    with pytest.raises(Usage, match=f"{name} does not take") as caught:
        samplers.with_schedule(name, schedule)
    for near in caught.value.details["near"]:
        assert schedule in samplers.find(near).schedules


@pytest.mark.parametrize("name", ["beta", "polyexponential", "KL optimal", "karas", "Euler a"])
def test_a_schedule_that_there_is_not_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(Usage, match="the schedules are Uniform, Karras, "):
        samplers.find_schedule(name)


def test_steps_that_diffusers_spreads_wrongly_are_refused_with_the_nearest() -> None:
    with pytest.raises(Usage, match="one more from diffusers") as caught:
        samplers.check_steps(samplers.find("Euler SGM Uniform"), 61)
    assert caught.value.hint == "--steps 62"
    samplers.check_steps(samplers.find("Euler"), 61)


def test_an_unknown_sampler_names_the_nearest() -> None:
    with pytest.raises(Usage) as caught:
        samplers.find("eulr a")
    assert "Euler a" in caught.value.message


def test_a_model_of_zero_terminal_snr_refuses_samplers_that_ignore_it() -> None:
    samplers.check_zero_snr(samplers.find("ddim"), True)
    samplers.check_zero_snr(samplers.find("heun"), False)
    with pytest.raises(SdcliError) as caught:
        samplers.check_zero_snr(samplers.find("heun"), True)
    assert "DDIM" in caught.value.message and "UniPC" in caught.value.message


@pytest.mark.parametrize("sampler", (*samplers.EVERY, *samplers.pairs()), ids=lambda sampler: sampler.name)
def test_a1111_s_pair_of_names_comes_back_as_the_same_sampler(sampler: samplers.Sampler) -> None:
    assert samplers.from_a1111(*sampler.a1111) == sampler


@pytest.mark.parametrize(
    ("usual", "able"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE"),
        ("Heun", "Euler"),
        ("DDIM", "DDIM"),
    ],
)
def test_a_model_of_zero_terminal_snr_gets_the_nearest_sampler_that_supports_it(usual: str, able: str) -> None:
    assert samplers.default_for(usual, True) == able
    assert samplers.default_for(usual, False) == usual


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),  # what it means in A1111
        ("DPM++ 2M", None, "DPM++ 2M"),
        ("DPM++ 2M Karras", None, "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Karras", "DPM++ 2M Karras"),
        ("Euler a", "Automatic", "Euler a"),
        ("Euler", "Karras", "Euler Karras"),
        ("Euler Karras", None, "Euler Karras"),
        ("Euler", "sgm_uniform", "Euler SGM Uniform"),
        ("Euler", "KL Optimal", None),
        ("Euler a", "Karras", None),
        ("DPM++ 2M SDE", "Exponential", "DPM++ 2M SDE Exponential"),
        ("DPM++ 2M SDE", "Automatic", "DPM++ 2M SDE Exponential"),
        ("DPM2", "Automatic", "DPM2 Karras"),
        ("DPM++ SDE", "Karras", None),
        ("PLMS", "Automatic", "PNDM"),
        ("x" * 1000, "y" * 1000, None),
    ],
)
def test_a_pair_of_a1111_is_ours_only_where_it_means_the_same(
    name: str, schedule: str | None, expected: str | None
) -> None:
    sampler = samplers.from_a1111(name, schedule)
    assert (sampler.name if sampler else None) == expected


@pytest.mark.parametrize("sampler", samplers.EVERY, ids=lambda sampler: sampler.name)
def test_a_number_of_steps_a_sampler_cannot_take_is_refused_with_one_it_can(sampler: samplers.Sampler) -> None:
    samplers.check_steps(sampler, 1)
    samplers.check_steps(sampler, sampler.most_steps)
    for steps in (0, sampler.most_steps + 1):
        with pytest.raises(Usage, match=f"1 to {sampler.most_steps}"):
            samplers.check_steps(sampler, steps)


def test_no_two_samplers_share_a_name_and_the_table_is_printed_as_it_is() -> None:
    printed = samplers.to_json()
    assert printed["schema"] == "sdcli.samplers/1"
    assert len(printed["samplers"]) == len({row["name"] for row in printed["samplers"]}) == len(samplers.EVERY) == 23
    assert {row["unet_calls"] for row in printed["samplers"]} == {"n", "2n-1", "n+1"}
    names = [samplers._key(name) for s in samplers.EVERY for name in {samplers._key(n) for n in (s.name, *s.aliases)}]
    assert len(names) == len(set(names))


def test_a_setting_of_each_image_is_declared_in_one_place_and_used_where_it_counts() -> None:
    """Reading it from text, checking it, files of prompts, batches, reports and metadata all follow from that."""
    here = {"request/request.py", "request/options.py"}
    uses = {"draw/prompts.py", "draw/encode.py"}  # what it does
    programs = {f"record/metadata/{name}.py" for name in ("a1111", "comfyui", "invokeai")}
    foreign = {*programs, "asking/not_taken.py"}  # what another program calls it
    asked = {f"serve/{name}.py" for name in ("asked", "job_json", "openai_fields")}  # what requests call it
    asked |= {f"serve/sdapi_{name}.py" for name in ("answers", "fields", "options")}
    tried = {"plan/otherwise.py"}  # what may explain another image
    grouped = {"request/sweeps.py"}  # whose jobs stand together, since their texts are encoded once
    root = Path(jobs.__file__).resolve().parents[1]
    mentions = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"\bclip_skip\b", path.read_text(encoding="utf-8"))
    }
    assert mentions == here | uses | foreign | asked | tried | grouped
    assert "clip_skip" in PER_IMAGE and "clip_skip" in prompt_files.COLUMNS
