"""What an image's seed chooses from a template: the same everywhere, by dynamic prompts' syntax, whatever is typed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.errors import SdcliError, Usage
from sdcli.request import jobs, wildcards
from sdcli.request.prompt import Segment, parse
from sdcli.request.request import Request

FILES = {
    "colours.txt": "red\n\n# not this\ngreen  \nblue\n", "animals/cats.txt": "a {small|large} cat\n__colours__ lion\n",
    "animals/dogs.txt": "dog\n", "round/a.txt": "__round/b__\n", "round/b.txt": "x __round/a__\n",
    "weights.txt": "9::often\n1::seldom\n", "big/0.txt": "x\n", "empty.txt": "\n# nothing\n", "long.txt": "x" * 5000,
    **{f"big/{number}.txt": f"__big/{number - 1}__ __big/{number - 1}__\n" for number in range(1, 13)},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wildcards")
    for name, text in FILES.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text, encoding="utf-8")
    return base


def drawn(template: str, folder: Path | None = None, seeds: int = 200) -> Counter[str]:
    return Counter(wildcards.resolve(template, folder, seed, of="prompt", longest=20_000).text for seed in range(seeds))


@pytest.mark.parametrize(
    ("template", "all_of_them"),
    [
        ("a {red|blue} ball", {"a red ball", "a blue ball"}),
        ("a { red | blue } ball", {"a red ball", "a blue ball"}),
        ("{a|{b|c}}d", {"ad", "bd", "cd"}),
        ("{a|}x", {"ax", "x"}),
        ("{2$$a|b|c}", {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$+$$a|b}", {"a", "b", "a+b", "b+a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{2-$$a|b}", {"a, b", "b, a"}),
        ("{5$$a|b}", {"a, b", "b, a"}),
        ("{0$$a|b}x", {"x"}),
        ("{0::a|1::b}", {"b"}),
        ("__colours__", {"red", "green", "blue"}),
        ("{2$$__colours__}", {"red, green", "green, red", "red, blue", "blue, red", "green, blue", "blue, green"}),
        ("__animals/cats__", {"a small cat", "a large cat", "red lion", "green lion", "blue lion"}),
        ("__animals/d*__", {"dog"}),
        ("({a|b}:1.2) [c]", {"(a:1.2) [c]", "(b:1.2) [c]"}),
        ("[a|b] {word} <lora:my__colours__x:1>", {"[a|b] {word} <lora:my__colours__x:1>"}),
        (r"\{a|b\} \__colours__ \| \(", {r"{a|b} __colours__ \| \("}),
        (r"{a\|b|c}", {"a|b", "c"}),
        ("{a|b", {"{a|b"}),
        ("a|b} {", {"a|b} {"}),
        ("${x|y} {a|${z}}", {"${x|y} a", "${x|y} ${z}"}),
    ],
)
def test_a_template_gives_these_prompts_and_no_others(template: str, all_of_them: set[str], folder: Path) -> None:
    assert set(drawn(template, folder)) == all_of_them


def test_a_seed_chooses_the_same_on_every_machine() -> None:
    """Computed by hand, from the first 53 bits of the sha256 of text, seed and place."""
    template = "{a|b|c|d} {2$$e|f|g} {3::h|i}"
    listed = [wildcards.resolve(template, None, seed, of="prompt", longest=100).text for seed in range(4)]
    assert listed == ["c f, e h", "b e, f h", "a f, e h", "b f, g i"]


def test_prompt_and_negative_prompt_choose_apart() -> None:
    pairs = {
        tuple(wildcards.resolve("{a|b}", None, seed, of=of, longest=9).text for of in ("prompt", "negative_prompt"))
        for seed in range(50)
    }
    assert len(pairs) == 4


def test_weights_are_kept_to(folder: Path) -> None:
    for template in ("{9::often|1::seldom}", "__weights__"):
        assert 820 <= drawn(template, folder, 1000)["often"] <= 980, "nine in ten, with room for eight deviations"


def test_without_a_folder_names_are_text() -> None:
    assert set(drawn("__colours__ {a|a}")) == {"__colours__ a"}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("__colour__", "near: __colours__"),
        ("__animals/../../secret__", "no wildcard"),
        ("__round/a__", "leads back to itself"),
        ("__big/12__", "more than 1000 choices"),
        ("__empty__", "no line"),
        ("{a|" * 70 + "b" + "}" * 70, "nested deeper"),
        ("{a|a}" * 2000, "more than 1000 choices"),
        ("{5$$" + "|".join(["__long__"] * 5) + "}", "more than 20000 characters"),
        ("x" * 20_001, "longer than 20000 characters"),
    ],
)
def test_what_would_not_end_or_is_not_there_is_refused(template: str, says: str, folder: Path) -> None:
    with pytest.raises(SdcliError, match=says):
        drawn(template, folder, 1)


PIECES = st.sampled_from(
    ["{", "}", "|", "$$", "2$$", "1-2$$", "1.5::", "__colours__", "__big/3__", "__*__", "__", "\\", "a", "(b:1.2)", "[",
     "]", ",", "$", "${", "<lora:x:1>", "\n", " ", "0::", "é", "999$$"]
)  # fmt: skip
HOSTILE = st.lists(PIECES, max_size=60).map("".join)


@settings(max_examples=200, deadline=None)
@given(HOSTILE, st.integers(0, 2**32 - 1))
def test_whatever_is_typed_is_a_prompt_or_refused_by_name(folder: Path, text: str, seed: int) -> None:
    try:
        resolved = wildcards.resolve(text, folder, seed, of="prompt", longest=20_000)
    except SdcliError:
        return
    assert resolved == wildcards.resolve(text, folder, seed, of="prompt", longest=20_000)
    assert len(resolved.text) <= 20_000 and (resolved.chosen or resolved.text.count("{") <= text.count("{"))


@settings(max_examples=200, deadline=None)
@given(st.one_of(HOSTILE, st.text(max_size=40)))
def test_an_escaped_text_is_the_prompt_itself(folder: Path, text: str) -> None:
    assert wildcards.resolve(wildcards.escaped(text), folder, 1, of="prompt", longest=20_000) == (text, False)


def test_jobs_hold_the_chosen_text_and_the_template() -> None:
    request = Request(prompts=("a {red|blue} ball", "a cat"), negative_prompt="{x|y}", seeds=(1, 2, 3, 4, 5, 6))
    made = jobs.make_jobs(request)
    assert {job.prompt for job in made} == {"a red ball", "a blue ball", "a cat"}
    assert {job.template for job in made} == {"a {red|blue} ball", None}
    assert {job.negative_template for job in made} == {"{x|y}"}
    off = jobs.make_jobs(Request(prompts=("a {red|blue} ball",), seeds=(1,), wildcards="off"))
    assert (off[0].prompt, off[0].template) == ("a {red|blue} ball", None)


def test_weights_around_a_choice_are_weights() -> None:
    (job,) = jobs.make_jobs(Request(prompts=("a ({red|red}:1.3) ball",), seeds=(1,)))
    assert parse(job.prompt) == (Segment("a "), Segment("red", 1.3), Segment(" ball"))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(Usage, match="there is no folder"):
        jobs.make_jobs(Request(prompts=("__a__",), seeds=(1,), wildcards="/no/such"))
