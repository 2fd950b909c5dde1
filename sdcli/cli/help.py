"""`sdcli help TOPIC`, from exit codes to JSON. Facts come from where they are used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sdcli.errors import MEANINGS, REGISTRY, Usage
from sdcli.request.options import command as make
from sdcli.request.prompt_files import COLUMNS
from sdcli.terminal import folded, in_columns, put, show, tell, width


def command() -> Callable[..., None]:
    return make(_show, [], name="help", words="TOPIC", help="Read about: " + ", ".join(TOPICS) + ".")


def _show(typed: dict[str, Any]) -> None:
    words = typed.get("words", [])
    if not words:
        head = "sdcli help TOPIC, where TOPIC is one of: " + ", ".join(TOPICS) + ". Every command has --help."
        for line in folded(head, width(sys.stdout)):
            tell(line)
        return
    topic = TOPICS.get(words[0])
    if topic is None:
        raise Usage(f'no help on "{show(words[0], 60)}"; topics: {", ".join(TOPICS)}', hint="sdcli help exit-codes")
    if words[0] == "json" and len(words) > 1:
        _print_schema(words[1])
        return
    for line in topic(min(80, width(sys.stdout))):
        tell(line)


def _exit_codes(columns: int) -> list[str]:
    head = "sdcli exits with one of these codes. With --json an error also has a type, shown here in brackets."
    lines = [*folded(head, columns), ""]
    for code, meaning in MEANINGS.items():
        types = ", ".join(name for name, cls in REGISTRY.items() if cls.code == code)
        lines += folded(f"{meaning}  [{types}]" if types else meaning, columns, f"{code:>4}  ")
    return lines


def _environment(columns: int) -> list[str]:
    from sdcli.request.config import NOT_KEPT
    from sdcli.request.options import OPTIONS

    rows = {
        f"SDCLI_{option.field.upper()}": option.help
        for option in OPTIONS
        if option.field not in NOT_KEPT and not option.hidden
    }
    others = {
        "SDCLI_HOME": "One folder for settings, cache and state.",
        "HF_HOME": "Where the Hugging Face cache is.",
        "HF_ENDPOINT": "A mirror of the Hub.",
        "HF_TOKEN": "Your Hub token, for gated models.",
        "CUDA_VISIBLE_DEVICES": "The GPUs to use.",
        "NO_COLOR": "No colours. FORCE_COLOR: colours in a pipe too.",
        "COLUMNS": "Width of the output.",
    }
    room = max(map(len, rows)) + 4
    head = "These options can be set in the environment; a flag takes precedence."
    return [*folded(head, columns), "", *_rows(rows, room, columns), "", *_rows(others, room, columns)]


def _rows(rows: Mapping[str, str], room: int, columns: int, indent: str = "  ") -> list[str]:
    return [line for label, text in rows.items() for line in in_columns(indent + label, text, room, columns)]


def _memory(columns: int) -> list[str]:
    head = (
        "Before anything is loaded, sdcli predicts what every sensible setup would need, and takes the fastest one "
        "that fits. `sdcli plan` shows them all."
    )
    rows = {
        "budget": "92 % of what is free now (on CUDA after 0.5 GiB for its context)",
        "--max-vram 6": "stay within 6 GiB on the GPU; --max-ram likewise in host memory",
        "--pin SLOT=CHOICE": "force one choice, as --pin placement=group-offload; the rest is planned",
        "--no-fallback": "stop when memory runs out, instead of retrying with a smaller setup",
        "--as-if cuda:8GiB": "with plan: what another GPU would need",
    }
    slots = "The slots and their choices:"
    return [*folded(head, columns), "", *_rows(rows, 22, columns), "", slots, *_slots(columns)]


def _slots(columns: int) -> list[str]:
    from sdcli.plan.techniques import TECHNIQUES

    room = max(len(technique.flag) for technique in TECHNIQUES) + 4
    return _rows({t.flag: " | ".join(t.choices) for t in TECHNIQUES}, room, columns)


def _formats(columns: int) -> list[str]:
    rows = {
        "Models": ".safetensors only: a diffusers folder, or a single checkpoint of SD1.5, SD2 or SDXL in the original "
        "layout. Pickles (.ckpt, .pt, .bin) can run code and are refused.",
        "Adapters": "--lora (kohya's or diffusers' names; also <lora:name:0.8> in the prompt), --embedding (textual "
        "inversion), --vae, --reference-model: .safetensors only, by path, or by name from the model's folder, from "
        "Lora/, embeddings/ and VAE/ next to it, or from the folders of the config file.",
        "Upscalers": "--upscaler, of `upscale` and of `generate --hires`: an ESRGAN or Real-ESRGAN .safetensors file "
        "(also compact ones), by path, or by name from ESRGAN/ or upscale_models/ next to the model or from the "
        "folders of the config file.",
        "Images": "png, jpg, webp. Each holds the A1111 settings text, and sdcli's own chunk with everything needed "
        "to draw it again (--metadata full).",
        "Prompts": "--prompts FILE: text (a prompt per line; # and a space begin a comment), JSONL or CSV with columns "
        f"{', '.join(COLUMNS)}. - reads stdin line by line.",
        "Names": "NNNN-words-of-the-prompt-seed.png; -o takes a folder, a file, or a template of {index} {seed} "
        "{width} {height} {model} {steps} {run} {slug}.",
        "Records": "sdcli-images/runs/RUN/run.jsonl as the run goes, report.json at its end.",
    }
    return _rows(rows, 11, columns, indent="")


def _prompts(columns: int) -> list[str]:
    head = (
        "What is chosen depends on the image's seed alone. The image stores the prompt it got and the template. "
        "`generate --dry-run` prints the prompts."
    )
    rows = {
        "(word:1.3)": "more weight; (word) is 1.1 times, [word] 1/1.1; --emphasis comfy or none reads them otherwise",
        "BREAK": "what follows begins a new chunk of 75 tokens",
        "{red|blue}": "one of these, which may hold others; {3::often|seldom} weighs them",
        "{2$$a|b|c}": "two of these, with a comma between; {1-2$$ and $$a|b|c}: one or two, with and between",
        "__colours__": "a line of colours.txt in the folder of --wildcards, or in wildcards/ beside the config file; "
        "__animals/*__ of any file there. A line may be a template, begin with a weight (3::red) or be a # comment",
        "{2$$__colours__}": "two different lines",
        "\\{ \\} \\__x__": "the braces or the name themselves; {word} without a bar is text too",
        "--wildcards off": "nothing is chosen",
    }
    return [*folded(head, columns), "", *_rows(rows, 20, columns)]


def _sweeps(columns: int) -> list[str]:
    head = (
        "`generate --sweep NAME=A,B` draws every combination in one run, with one seed unless seeds are swept: the "
        "first --sweep makes the columns of the grid, the others its rows. `plan` with the same flags says how many "
        "cells, how long and how much memory. An interrupted sweep goes on with `resume`. The grid is grid-RUN.html, "
        ".png, .csv and .json beside the images."
    )
    rows = {
        "guidance=3,5,7": "any setting that each image may have for itself, by its flag",
        "guidance=2..8:1.5": "a range, both ends included; without a step it is 1",
        "seed=1..4": "seeds; several --seed or prompts are axes too",
        "sampler=Euler,DDIM": "with scheduler=karras,simple as a second axis: each with each",
        "lora.ink=0.4..1:0.2": "weights of the LoRA ink, which --lora names, or which lies where --lora finds it; "
        "the model is loaded once for each",
        "'S/R cat,dog,fox'": "words of the prompt: the first is replaced by each of the others, and kept once",
        "negative-prompt='\"a, b\",c'": "a value with a comma stands in quotes",
    }
    return [*folded(head, columns), "", *_rows(rows, 29, columns)]


def _json(columns: int) -> list[str]:
    from sdcli.cli.json_documents import DOCUMENTS

    head = (
        "With --json a command prints one JSON object on stdout, whatever happens. Its key `schema` names what it is. "
        "`sdcli help json NAME` prints its JSON Schema."
    )
    rows = {name: f"{document.words} From: {document.source}" for name, document in DOCUMENTS.items()}
    return [*folded(head, columns), "", *_rows(rows, max(map(len, rows)) + 4, columns)]


def _print_schema(text: str) -> None:
    from sdcli.cli.json_documents import DOCUMENTS, schema_of

    name = text.removeprefix("sdcli.").partition("/")[0]
    if name not in DOCUMENTS:
        known = ", ".join(DOCUMENTS)
        raise Usage(f'no JSON document "{show(text, 60)}"; documents: {known}', hint="sdcli help json")
    put((json.dumps(schema_of(name), ensure_ascii=False, indent=2) + "\n").encode())


TOPICS: dict[str, Callable[[int], list[str]]] = {
    "exit-codes": _exit_codes,
    "environment": _environment,
    "memory": _memory,
    "formats": _formats,
    "prompts": _prompts,
    "sweeps": _sweeps,
    "json": _json,
}
