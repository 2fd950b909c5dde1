"""Every option, declared once: a Request field's flags, help and panel, from which Typer's parameters are made.

All values arrive as text and are converted by config.convert, so that the command line, the environment and
the config file accept the same spellings and report the same errors. Only what was typed is passed on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

from sdcli.images import control, fit

EVERYDAY, PROMPT, FROM, IMAGE = "Everyday", "Prompt", "From an image", "Image"
MODEL, MEMORY, OUTPUT = "Model", "Memory", "Output"


class Option(NamedTuple):
    """One option, or a positional word if it has no flags. `switch` takes no value; `repeatable` may occur several
    times; `hidden` is not in --help."""

    field: str
    flags: tuple[str, ...] = ()
    help: str = ""
    panel: str = ""
    metavar: str = "TEXT"
    kind: type = str
    default: Any = None  # shown by --help; None where the settings decide
    switch: bool = False
    repeatable: bool = False
    hidden: bool = False
    choices: tuple[str, ...] = ()
    within: tuple[float, float] | None = None  # bounds of a number, both included


OPTIONS: tuple[Option, ...] = (
    Option(field="model", flags=("-m", "--model"), metavar="NAME|PATH", panel=EVERYDAY,
           help="Name (sd15, sdxl), Hub id, folder or .safetensors file."),
    Option(field="negative_prompt", flags=("--negative-prompt", "--negative"), panel=EVERYDAY,
           help="What the image should not show."),
    Option(field="steps", flags=("-s", "--steps"), metavar="N", panel=EVERYDAY, within=(1, 10_000),
           help="Denoising steps."),
    Option(field="guidance", flags=("-g", "--guidance", "--cfg-scale", "--guidance-scale"), metavar="X", panel=EVERYDAY,
           within=(0, 100), help="How closely to follow the prompt; 1 turns guidance off."),
    Option(field="seeds", flags=("--seed",), metavar="N|1,5,9|1..8", panel=EVERYDAY,
           help="Seed, list or range (both ends included); random if omitted or -1, and printed."),
    Option(field="num_images", flags=("-n", "--num-images"), metavar="N", panel=EVERYDAY,
           help="Images per prompt; seeds count up."),
    Option(field="size", flags=("--size",), metavar="WxH", panel=EVERYDAY,
           help="Width and height, e.g. 1024x768; 512 is a square."),
    Option(field="sampler", flags=("--sampler",), metavar="NAME", panel=EVERYDAY,
           help="How noise is removed; see `sdcli samplers`."),
    Option(field="preset", flags=("--preset",), metavar="NAME", panel=EVERYDAY,
           help="A named set of settings; see `sdcli presets`."),
    Option(field="output", flags=("-o", "--output"), metavar="PATH", panel=EVERYDAY,
           help="Folder, file, or a template such as {index:04d}-{seed}.png."),
    Option(field="max_vram", flags=("--max-vram",), metavar="SIZE", panel=EVERYDAY,
           help="Limit GPU memory, e.g. 6 or 6GiB."),
    Option(field="prompts", flags=("-p", "--prompt"), repeatable=True, panel=PROMPT,
           help="A prompt; may be repeated. Drawn in the given order."),
    Option(field="prompts_file", flags=("--prompts",), metavar="FILE", panel=PROMPT,
           help="Prompts from a text, JSONL or CSV file; - reads stdin line by line."),
    Option(field="wildcards", flags=("--wildcards",), metavar="FOLDER", panel=PROMPT,
           help="Text files for __names__ in prompts, one choice a line; off leaves {a|b} and __names__ as they are."),
    Option(field="emphasis", flags=("--emphasis",), metavar="MODE", choices=("a1111", "comfy", "none"), panel=PROMPT,
           help="How (word:1.3) is weighted: a1111, comfy or none."),
    Option(field="clip_skip", flags=("--clip-skip",), metavar="N", panel=PROMPT, within=(1, 12),
           help="Stop the text encoder at its Nth layer from the end; 1 uses all layers."),
    Option(field="settings_from", flags=("--settings-from",), metavar="IMAGE", panel=PROMPT,
           help="Use the settings stored in an image."),
    Option(field="image", flags=("--image",), metavar="FILE", repeatable=True, panel=FROM,
           help="Start from this image; a folder or a pattern such as 'photos/*.jpg' gives an image for each."),
    Option(field="strength", flags=("--strength",), metavar="X", panel=FROM, within=(0, 1),
           help="How much of it to change: the share of the steps taken; 0.6, with a mask 0.8, around it 1."),
    Option(field="fit", flags=("--fit",), metavar="HOW", choices=fit.WAYS, panel=FROM,
           help="Where its shape differs from the size: crop, pad or stretch it."),
    Option(field="image_guidance", flags=("--image-guidance", "--image-cfg-scale"), metavar="X", panel=FROM,
           within=(1, 100), help="With models trained to edit: how closely to keep to the image; 1.5."),
    Option(field="mask", flags=("--mask",), metavar="FILE", panel=FROM,
           help="Repaint only what is white in this image; the rest keeps its pixels."),
    Option(field="mask_blur", flags=("--mask-blur",), metavar="N", panel=FROM, within=(0, 256),
           help="Pixels within the mask over which new and old blend."),
    Option(field="only_masked", flags=("--only-masked",), switch=True, panel=FROM,
           help="Draw the masked part alone, as large as the size, and put it back into the image."),
    Option(field="mask_padding", flags=("--mask-padding",), metavar="N", panel=FROM, within=(0, 4096),
           help="With --only-masked: pixels around the masked part that are looked at."),
    Option(field="masked_content", flags=("--masked-content",), metavar="WHAT",
           choices=("original", "fill", "noise", "nothing"), panel=FROM,
           help="What the masked part starts from: original, fill (its surroundings), noise or nothing."),
    Option(field="outpaint", flags=("--outpaint",), metavar="SIDE:N,…", panel=FROM,
           help="Draw around the image, e.g. left:128,top:64; also a single number for all sides."),
    Option(field="control", flags=("--control",), metavar="MODEL[:WHAT]=FILE[:WEIGHT][:FROM-TO]", repeatable=True,
           panel=FROM, help="Steer with an image through a ControlNet or T2I-Adapter, e.g. canny=room.png:0.8:0-0.6; a "
           "ControlNet Union is told WHAT it shows, e.g. union:depth=depth.png."),
    Option(field="control_from", flags=("--control-from",), metavar="WHAT", choices=control.WAYS, panel=FROM,
           help="What to make of that image first: canny, scribble, tile, invert or none."),
    Option(field="guess_mode", flags=("--guess-mode",), switch=True, panel=FROM,
           help="Let ControlNets guess what the image shows; for prompts that say little."),
    Option(field="reference", flags=("--reference",), metavar="FILE[:WEIGHT]", repeatable=True, panel=FROM,
           help="Draw what looks like this image, through an IP-Adapter; its weight is 0.6 if omitted."),
    Option(field="reference_model", flags=("--reference-model",), metavar="FILE", panel=FROM,
           help="That IP-Adapter, a .safetensors file."),
    Option(field="reference_encoder", flags=("--reference-encoder",), metavar="FOLDER|FILE", panel=FROM,
           help="The image encoder that it was trained with, where it does not lie beside it."),
    Option(field="reference_layers", flags=("--reference-layers",), metavar="WHAT", choices=("all", "style", "layout"),
           panel=FROM, help="What to take of it: all, or with SDXL its style or its layout alone."),
    Option(field="reference_mask", flags=("--reference-mask",), metavar="FILE", repeatable=True, panel=FROM,
           help="Where it acts: what is white in this image; one for each --reference, in their order."),
    Option(field="hires", flags=("--hires",), metavar="X", panel=IMAGE, within=(1, 8),
           help="Draw a second time, X times as large, over what was drawn."),
    Option(field="hires_steps", flags=("--hires-steps",), metavar="N", panel=IMAGE, within=(1, 1000),
           help="Steps of the second time; as many as the first if omitted."),
    Option(field="hires_strength", flags=("--hires-strength",), metavar="X", panel=IMAGE, within=(0, 1),
           help="How much it changes; 0.7, of an enlarged image 0.4."),
    Option(field="upscaler", flags=("--upscaler",), metavar="NAME|FILE", panel=IMAGE,
           help="How what was drawn is enlarged before: latent, lanczos, or with an ESRGAN model."),
    Option(field="width", flags=("-W", "--width"), metavar="N", panel=IMAGE, help="Mostly a multiple of 8."),
    Option(field="height", flags=("-H", "--height"), metavar="N", panel=IMAGE, help="Mostly a multiple of 8."),
    Option(field="scheduler", flags=("--scheduler", "--schedule"), metavar="NAME", panel=IMAGE,
           help="How its steps are spread, apart from the sampler: karras, exponential, sgm-uniform, simple, uniform, "
           "automatic."),
    Option(field="rng", flags=("--rng",), metavar="HOW", choices=("cpu", "nv"), panel=IMAGE,
           help="How noise is drawn from a seed: cpu, or nv as an NVIDIA GPU draws it, as A1111 does by default."),
    Option(field="batch_size", flags=("--batch-size",), metavar="N", panel=IMAGE, within=(1, 64),
           help="Images drawn at once; changes pixels slightly."),
    Option(field="batch_invariant", flags=("--batch-invariant",), switch=True, panel=IMAGE,
           help="Same pixels at any batch size; slower."),
    Option(field="filmstrip", flags=("--filmstrip",), metavar="N", panel=IMAGE, within=(0, 1000),
           help="Also save a strip of N intermediate frames next to the image."),
    Option(field="preview_every", flags=("--preview-every",), metavar="N", panel=IMAGE, hidden=True,
           within=(0, 10_000), help="A rough preview every N steps."),
    Option(field="revision", flags=("--revision",), metavar="COMMIT", panel=MODEL, help="Revision of a Hub model."),
    Option(field="lora", flags=("--lora",), metavar="FILE[:WEIGHT]", repeatable=True, panel=MODEL,
           help="Add a LoRA: a file, a name or a Hub id; also <lora:name:weight> in a prompt."),
    Option(field="embeddings", flags=("--embedding",), metavar="FILE[:WORD]", repeatable=True, panel=MODEL,
           help="Add a textual inversion; WORD defaults to the file name."),
    Option(field="vae_file", flags=("--vae",), metavar="FILE", panel=MODEL, help="Decode with this VAE."),
    Option(field="refiner", flags=("--refiner",), metavar="MODEL[@SHARE]", panel=MODEL,
           help="Leave the last steps to this SDXL refiner: a fifth of them, or those after @SHARE of all."),
    Option(field="offline", flags=("--offline",), switch=True, panel=MODEL, help="Never use the network."),
    Option(field="device", flags=("--device",), metavar="NAME", panel=MEMORY,
           help="What draws: auto, cpu, cuda (NVIDIA or AMD), cuda:1, xpu (Intel) or mps."),
    Option(field="dtype", flags=("--dtype",), metavar="TYPE", choices=("fp32", "bf16", "fp16"), panel=MEMORY,
           help="Number type of the weights: fp32, bf16 or fp16."),
    Option(field="max_ram", flags=("--max-ram",), metavar="SIZE", panel=MEMORY, help="Limit host memory."),
    Option(field="pins", flags=("--pin",), metavar="SLOT=CHOICE", repeatable=True, panel=MEMORY,
           help="Force one choice, e.g. placement=group-offload; see `sdcli help memory`."),
    Option(field="compile", flags=("--compile",), metavar="WHEN", choices=("auto", "off", "on"), panel=MEMORY,
           help="Compile the UNet's blocks: auto (where it saves time), off or on."),
    Option(field="fallback", flags=("--fallback/--no-fallback",), switch=True, panel=MEMORY,
           help="When out of memory, retry with a smaller setup (default), or stop."),
    Option(field="format", flags=("--format",), metavar="TYPE", choices=("png", "jpg", "webp"), panel=OUTPUT,
           help="File format: png, jpg or webp."),
    Option(field="quality", flags=("--quality",), metavar="N", panel=OUTPUT, within=(0, 100),
           help="Of jpg and webp files; 95 keeps what the eye sees."),
    Option(field="metadata", flags=("--metadata",), metavar="KIND", choices=("full", "a1111", "none"), panel=OUTPUT,
           help="Settings stored in the file: full, a1111 or none."),
    Option(field="keep_steps", flags=("--keep-steps",), switch=True, panel=OUTPUT,
           help="Keep each step on disk until its image is saved, so that sdcli resume goes on inside an image."),
    Option(field="overwrite", flags=("--overwrite",), switch=True, panel=OUTPUT, help="Replace existing files."),
)  # fmt: skip

SCREEN: tuple[Option, ...] = (
    Option(field="json", flags=("--json",), switch=True, panel=OUTPUT, help="One JSON object on stdout."),
    Option(field="json_lines", flags=("--json-lines",), switch=True, panel=OUTPUT, help="One JSON object per image."),
    Option(field="show", flags=("--show/--no-show",), switch=True, panel=OUTPUT, help="Show images in the terminal."),
    Option(field="quiet", flags=("-q", "--quiet"), switch=True, panel=OUTPUT, help="Print only results and errors."),
    Option(field="verbose", flags=("-v", "--verbose"), switch=True, panel=OUTPUT, help="Print the whole report."),
    Option(field="debug", flags=("--debug",), switch=True, panel=OUTPUT, help="Show tracebacks."),
    Option(field="engine", flags=("--engine",), metavar="NAME", choices=("local", "fake", "ray"), panel=OUTPUT,
           help="What draws: local, fake (a gradient in milliseconds, to try things out), or for generate "
           "and resume ray[=ADDRESS], the nodes of a Ray cluster."),
)  # fmt: skip
SAVE_CONTROL = Option(
    field="save_control", flags=("--save-control",), switch=True, panel=OUTPUT,
    help="Also save what ControlNets see, next to the image.",
)  # fmt: skip
SWEEP = Option(
    field="sweep", flags=("--sweep",), metavar="NAME=A,B", repeatable=True, panel=IMAGE,
    help="Draw every combination, e.g. guidance=3,5,7 or 'S/R cat,dog'; may be repeated; see `sdcli help sweeps`.",
)  # fmt: skip
DRY_RUN = Option(
    field="dry_run", flags=("--dry-run",), switch=True, panel=OUTPUT,
    help="Draw nothing; print the prompt of each image, with what its seed chose.",
)  # fmt: skip
SHARD = Option(
    field="shard", flags=("--shard",), metavar="I/N", panel=OUTPUT,
    help="Draw one of N shares of the images, e.g. 2/8; other processes or machines draw the others.",
)  # fmt: skip
CPU_AUTO = "cpu:auto"  # the CPU's threads, divided among processes as is fastest
DEVICES = Option(
    field="devices", flags=("--devices",), metavar="LIST", panel=MEMORY,
    help="Draw on several devices at once: all, 0,1, cuda:0,cpu, cpu:2x1 for 2 processes of 1 thread, cpu:auto for "
    "as many as are fastest.",
)  # fmt: skip
AS_IF = Option(
    field="as_if", flags=("--as-if",), metavar="DEVICE:SIZE", panel=MEMORY,
    help="Plan for another machine, e.g. cpu, mps, cuda:8GiB, rocm:16GiB, xpu:16GiB, cuda:24GiB/20GiB,ram:64GiB.",
)  # fmt: skip


def flag_of(field: str) -> str:
    """The long flag that messages name for a field."""
    for option in (*OPTIONS, *SCREEN, AS_IF, SAVE_CONTROL, SWEEP, DRY_RUN, SHARD, DEVICES):
        if option.field == field:
            longest: str = next(flag for flag in option.flags if flag.startswith("--"))
            return longest.split("/")[0]
    return "--" + field.replace("_", "-")


def _parameter(option: Option, complete: Callable[[str, str], list[str]] | None) -> inspect.Parameter:
    import typer

    named: dict[str, Any] = {"help": option.help, "rich_help_panel": option.panel, "hidden": option.hidden}
    if not option.switch:
        named["metavar"] = option.metavar
        if complete is not None:
            field = option.field
            named["autocompletion"] = lambda incomplete: complete(field, incomplete)
    kind: Any = bool if option.switch else list[str] if option.repeatable else option.kind
    argument = typer.Argument(metavar=option.metavar, show_default=False)
    annotation = Annotated[kind | None, typer.Option(*option.flags, **named) if option.flags else argument]
    return inspect.Parameter(
        option.field, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation
    )


def command(
    body: Callable[[dict[str, Any]], None],
    options: Iterable[Option],
    *,
    name: str,
    help: str,
    words: str | None = None,
    complete: Callable[[str, str], list[str]] | None = None,
) -> Callable[..., None]:
    """A function for Typer to register: its parameters are `options` (and `words`, the positional ones). When called,
    it passes `body` a dict of only what was typed."""
    positional = () if words is None else (Option(field="words", metavar=words, repeatable=True),)
    parameters = [_parameter(option, complete) for option in (*positional, *options)]

    def run(**values: Any) -> None:
        body({field: value for field, value in values.items() if value is not None and value != []})

    run.__name__ = name.replace("-", "_")
    run.__doc__ = help
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
