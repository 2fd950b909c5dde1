"""`sdcli help TOPIC`: exit codes, environment, memory, formats. Facts come from where they are used."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from typing import Any

from sdcli.errors import MEANINGS, REGISTRY, Usage
from sdcli.request.options import command as make
from sdcli.terminal import say, show


def command() -> Callable[..., None]:
    return make(_show, [], name="help", words="TOPIC", help="Read about: " + ", ".join(TOPICS) + ".")


def _show(typed: dict[str, Any]) -> None:
    words = typed.get("words", [])
    if not words:
        say("sdcli help TOPIC, where TOPIC is one of: " + ", ".join(TOPICS), sys.stdout)
        say("Every command has --help.", sys.stdout)
        return
    topic = TOPICS.get(words[0])
    if topic is None:
        raise Usage(f'no help on "{show(words[0], 60)}"; there is {", ".join(TOPICS)}', hint="sdcli help exit-codes")
    for line in topic():
        say(line, sys.stdout)


def _exit_codes() -> list[str]:
    lines = ["sdcli ends with one of these codes. With --json an error also has a type,", "given here in brackets.", ""]
    for code, meaning in MEANINGS.items():
        types = ", ".join(name for name, cls in REGISTRY.items() if cls.code == code)
        said = f"{meaning}  [{types}]" if types else meaning
        lines += textwrap.wrap(said, 79, initial_indent=f"{code:>4}  ", subsequent_indent=" " * 6)
    return lines


def _environment() -> list[str]:
    from sdcli.request.config import NOT_KEPT
    from sdcli.request.options import OPTIONS

    width = max(len(option.field) for option in OPTIONS) + len("SDCLI_") + 2
    lines = ["Any option can be set in the environment; a flag wins over it.", ""]
    for option in OPTIONS:
        if option.field not in NOT_KEPT and not option.hidden:
            start = f"  {'SDCLI_' + option.field.upper():<{width}}"
            lines += textwrap.wrap(option.help, 79, initial_indent=start, subsequent_indent=" " * len(start))
    return [
        *lines,
        "",
        f"  {'SDCLI_HOME':<{width}}One folder for settings, cache and state.",
        f"  {'HF_HOME':<{width}}Where the Hugging Face cache is.",
        f"  {'HF_ENDPOINT':<{width}}A mirror of the Hub.",
        f"  {'HF_TOKEN':<{width}}Your Hub token, for gated models.",
        f"  {'CUDA_VISIBLE_DEVICES':<{width}}The GPUs that may be used.",
        f"  {'NO_COLOR':<{width}}No colours. FORCE_COLOR: colours in a pipe too.",
        f"  {'COLUMNS':<{width}}Width to draw in.",
    ]


def _memory() -> list[str]:
    return [
        "Before anything is loaded, sdcli works out what every sensible way of drawing",
        "would need, and takes the fastest one that fits. `sdcli plan` shows them all.",
        "",
        "  budget    92 % of what is free now (on CUDA after 0.5 GiB for its context)",
        "  --max-vram 6   stay within 6 GiB on the GPU; --max-ram likewise in host memory",
        "  --pin placement=group-offload   decide a slot yourself; the rest is planned",
        "  --no-fallback  stop when memory runs out, instead of going down a rung",
        '  sdcli plan "a cat" -m sdxl --as-if cuda:8GiB   the plan for another card',
        "",
        "The slots and their choices:",
        *_slots(),
    ]


def _slots() -> list[str]:
    from sdcli.plan.techniques import TECHNIQUES

    width = max(len(technique.flag) for technique in TECHNIQUES)
    return [f"  {t.flag:<{width}}  {' | '.join(t.choices)}" for t in TECHNIQUES]


def _formats() -> list[str]:
    return [
        "Models    .safetensors only: a diffusers folder, or a single checkpoint of",
        "          SD1.5 or SDXL in the original layout. Pickles (.ckpt, .pt, .bin) can",
        "          run code and are refused.",
        "Beside it --lora (kohya's or diffusers' names; also <lora:name:0.8> in the",
        "          prompt), --embedding (textual inversion), --vae: .safetensors only,",
        "          by path, or by name from the model's folder, from Lora/, embeddings/",
        "          and VAE/ next to it, or from the folders of the config file.",
        "Pictures  png, jpg, webp. Each holds the A1111 settings text, and sdcli's own",
        "          chunk with everything needed to draw it again (--metadata full).",
        "Prompts   --prompts FILE: text (a prompt per line; a line that begins with # and",
        "          a space is a comment), JSONL or CSV with columns prompt, id,",
        "          negative_prompt, seed, steps, guidance, width, height, sampler,",
        "          clip_skip, emphasis. - reads stdin line by line.",
        "Names     NNNN-words-of-the-prompt-seed.png; -o takes a folder, a file, or a",
        "          template of {index} {seed} {width} {height} {model} {steps} {run}",
        "          {slug}.",
        "Records   sdcli-images/runs/RUN/run.jsonl as the run goes, report.json at its",
        "          end.",
    ]


TOPICS: dict[str, Callable[[], list[str]]] = {
    "exit-codes": _exit_codes,
    "environment": _environment,
    "memory": _memory,
    "formats": _formats,
}
