"""Starting from images, repainting, editing, second passes, refiners and what steers: our latents beside those of
diffusers' pipelines on the same components. Damaged image files: an image or a typed error."""

from __future__ import annotations

import functools
import io
import itertools
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import diffusers  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402
from diffusers.image_processor import VaeImageProcessor  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from scripts.gpu.inside import pipeline_of  # noqa: E402
from scripts.refined import OF_FIRST_ORDER, equal, pair_in  # noqa: E402
from sdcli.draw import control, decode, denoise, encode, images, load, quiet, schedulers, upscale  # noqa: E402
from sdcli.draw.denoise import Guidance  # noqa: E402
from sdcli.draw.encode import Text  # noqa: E402
from sdcli.draw.start import Begun, begun, enlarged  # noqa: E402
from sdcli.errors import BadFile, SdcliError, Usage  # noqa: E402
from sdcli.images import read  # noqa: E402
from sdcli.images.canvas import Canvas  # noqa: E402
from sdcli.images.control import SHOWN  # noqa: E402
from sdcli.images.read import InputImage  # noqa: E402
from sdcli.models import controlnet  # noqa: E402
from sdcli.models.families.sdxl import is_told_a_score  # noqa: E402
from sdcli.request.request import Repaint, Start, steps_taken  # noqa: E402
from sdcli.request.samplers import SAMPLERS, find  # noqa: E402

NAME = "modes"
CLAIM = (
    "Image-to-image, repainting (with UNets of four and nine channels), editing (InstructPix2Pix, at image guidance "
    "1.35, 1.6 and 2) and second passes (from enlarged latents, and from images that an ESRGAN net enlarged) of tiny "
    "SD1.5 and SDXL equal diffusers' pipelines to the bit: fp32, every sampler but PNDM, which diffusers starts wrong "
    "in the middle, each at the strengths 0.35, 0.6 and 1. So do ControlNets (one, two with windows, guessing, pooled, "
    "with an image, with a mask), ControlNet Unions and T2I-Adapters. SDXL with its refiner equals its two pipelines "
    "wherever these split between steps: every sampler of one call a step, after three, six and nine of ten. Ten "
    "thousand damaged image files give an image or a typed error."
)

FAMILIES = ("sd15", "sdxl")
STRENGTHS = (0.35, 0.6, 1.0)
STEPS, GUIDANCE = 10, 5.0
EXACT = tuple(sampler.name for sampler in SAMPLERS if sampler.name != "PNDM")
PIPELINES: Mapping[str, Mapping[str, Any]] = {
    "image": {
        "sd15": diffusers.StableDiffusionImg2ImgPipeline, "sd2": diffusers.StableDiffusionImg2ImgPipeline,
        "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline, "refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
    },
    "mask": {
        "sd15": diffusers.StableDiffusionInpaintPipeline, "sd2": diffusers.StableDiffusionInpaintPipeline,
        "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
    },
    "edit": {
        "sd15": diffusers.StableDiffusionInstructPix2PixPipeline,
        "sd2": diffusers.StableDiffusionInstructPix2PixPipeline,
        "sdxl": diffusers.StableDiffusionXLInstructPix2PixPipeline,
    },
}  # fmt: skip


def picture(width: int = 64, height: int = 64) -> Image.Image:
    """Smooth and noisy parts."""
    rows = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    rows[: height // 2] = numpy.linspace(0, 255, width, dtype=numpy.uint8)[None, :, None]
    return Image.fromarray(rows)


def mask_picture(width: int = 64, height: int = 64) -> Image.Image:
    mask = numpy.zeros((height, width), dtype=numpy.uint8)
    mask[height // 4 : height // 2, width // 3 : width - 5] = 255
    return Image.fromarray(mask)


def start_of(strength: float, repaint: Repaint | None = None) -> Start:
    """The image itself comes with the canvas."""
    return Start(image=InputImage(name="", width=64, height=64, sha256=""), strength=strength, repaint=repaint)


@dataclass(frozen=True)
class Compared:
    """A pipeline of diffusers, and encoded texts for it, made up: how texts are encoded is not at issue."""

    family: str
    pipeline: Any

    def text(self, seed: int) -> Text:
        config, generator = self.pipeline.unet.config, torch.Generator().manual_seed(seed)
        embeds = torch.randn((1, 77, config.cross_attention_dim), generator=generator)
        if config.addition_embed_type != "text_time":
            return Text(embeds, None)
        numbers = 5 if is_told_a_score(config) else 6
        width = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
        return Text(embeds, torch.randn((1, width), generator=generator))

    def theirs(self, mode: str, sampler: str, count: int = 1, **given: Any) -> Any:
        return self.by(PIPELINES[mode][self.family], {}, sampler, count, **given)

    def by(self, kind: Any, parts: Mapping[str, Any], sampler: str, count: int = 1, **given: Any) -> Any:
        """Drawn by another of diffusers' pipelines, on the same components and more `parts`."""
        known, (prompt, negative) = find(sampler), (self.text(1), self.text(2))
        other = kind.from_pipe(self.pipeline, **parts)
        other.scheduler = getattr(diffusers, known.scheduler).from_config(other.scheduler.config, **known.options)
        other.set_progress_bar_config(disable=True)
        given = {"prompt_embeds": prompt.embeds, "negative_prompt_embeds": negative.embeds, **given}
        if prompt.pooled is not None:
            given |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
        return other(
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, num_images_per_prompt=count,
            generator=generators(count), **{"output_type": "latent", **given},
        ).images  # fmt: skip

    def ours(
        self, sampler: str, start: Start | None, made: Canvas, count: int = 1,
        steering: Sequence[control.Steering] = (),
    ) -> Tensor:  # fmt: skip
        """What a run does between encoding texts and decoding."""
        vae, sees_mask, drawing = self.pipeline.vae, self.pipeline.unet.config.in_channels == 9, generators(count)
        kept = None if start is None else start.guidance
        if kept is None:
            encoded = images.encoded(vae, start, made, 8, sees_mask, decode.in_fp32)
        else:
            encoded = images.looked_at(vae, made, decode.in_fp32)
        all_begun = begun(
            [start] * count, [encoded] * count, drawing, vae.config, shape=_shape(made), dtype=torch.float32,
            sees_mask=sees_mask,
        )  # fmt: skip
        taken = STEPS if start is None else steps_taken(STEPS, start.strength)
        pure = start is not None and start.repaint is not None and start.strength == 1.0
        return self._drawn(sampler, all_begun, drawing, taken, pure, kept, steering)

    def steered(self, sampler: str, steering: Sequence[control.Steering]) -> Tensor:
        """From noise alone."""
        drawing, scheduler = generators(1), schedulers.make(sampler, self.pipeline.scheduler.config)
        schedulers.set_steps(scheduler, STEPS)
        conditioning = encode.conditioning(
            [self.text(1)], [self.text(2)], guidance=Guidance(scale=GUIDANCE), size=(64, 64),
            unet=self.pipeline.unet.config, groups=denoise.groups(1, 2),
        ).steered(steering, len(scheduler.timesteps))  # fmt: skip
        at = denoise.begin(scheduler, drawing, shape=(4, 8, 8), dtype=torch.float32, device="cpu")
        *_, last = denoise.denoise(self.pipeline.unet, scheduler, conditioning, at, drawing)
        return last.latents

    def second(self, sampler: str, small: Tensor, size: tuple[int, int], taken: int) -> Tensor:
        drawing = generators(1)
        all_begun = enlarged(small, drawing, shape=(4, *size), dtype=torch.float32)
        return self._drawn(sampler, all_begun, drawing, taken)

    def _drawn(
        self, sampler: str, start: Begun, drawing: list[torch.Generator], taken: int, pure: bool = False,
        kept: float | None = None, steering: Sequence[control.Steering] = (),
    ) -> Tensor:  # fmt: skip
        scheduler, unet, count = (
            schedulers.make(sampler, self.pipeline.scheduler.config),
            self.pipeline.unet,
            len(drawing),
        )
        schedulers.set_steps(scheduler, STEPS)
        timesteps = schedulers.last_timesteps(scheduler, STEPS, taken)
        height, width = start.noise.shape[-2:]
        guidance = Guidance(scale=GUIDANCE, sides=2 if kept is None else 3, image=kept or 1.0)
        conditioning = encode.conditioning(
            [self.text(1)] * count, [self.text(2)] * count, guidance=guidance, size=(width * 8, height * 8),
            unet=unet.config, groups=denoise.groups(count, guidance.sides),
        ).starting(start, torch.device("cpu")).steered(steering, len(timesteps))  # fmt: skip
        at = denoise.begin_from(scheduler, timesteps, drawing, start, pure=pure, device="cpu")
        *_, last = denoise.denoise(unet, scheduler, conditioning, at, drawing, timesteps)
        return last.latents


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(7 + number) for number in range(count)]


def _shape(made: Canvas) -> tuple[int, int, int]:
    return 4, made.image.height // 8, made.image.width // 8


# --- cases


def from_image(compared: Compared, sampler: str, strength: float) -> bool:
    expected = compared.theirs("image", sampler, image=picture(), strength=strength)
    return _equal(compared.ours(sampler, start_of(strength), Canvas(picture())), expected)


def repainted(compared: Compared, sampler: str, strength: float) -> bool:
    made = Canvas(picture(), mask_picture())
    given = {"image": made.image, "mask_image": made.mask, "width": 64, "height": 64}
    expected = compared.theirs("mask", sampler, strength=strength, **given)
    return _equal(compared.ours(sampler, start_of(strength, Repaint()), made), expected)


def edited(compared: Compared, sampler: str, strength: float) -> bool:
    """The strength serves for image guidance."""
    start = replace(start_of(1.0), guidance=1.0 + strength)
    expected = compared.theirs("edit", sampler, image=picture(), image_guidance_scale=1.0 + strength)
    return _equal(compared.ours(sampler, start, Canvas(picture())), expected)


def second_pass(compared: Compared, sampler: str, strength: float) -> bool:
    """From enlarged latents: diffusers takes four channels for latents."""
    small = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    larger = torch.nn.functional.interpolate(small, size=(16, 12), mode="bilinear")
    expected = compared.theirs("image", sampler, image=larger, strength=strength)
    return _equal(compared.second(sampler, small, (16, 12), steps_taken(STEPS, strength)), expected)


def _equal(own: Tensor, expected: Tensor) -> bool:
    return bool(torch.isfinite(expected).all()) and torch.equal(own, expected)


def second_by_model(compared: Compared, sampler: str, strength: float) -> bool:
    """Decoded, enlarged by an ESRGAN net, resized; theirs with the net in one piece."""
    vae, latents = compared.pipeline.vae, torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    net, small = upscaler(), decode.decode(vae, latents)
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    (shown,) = VaeImageProcessor().postprocess(decoded)
    shares = torch.from_numpy(numpy.array(shown, dtype=numpy.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        whole = (net(shares)[0].clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    image = Image.fromarray(whole.numpy()).resize((96, 128), Image.Resampling.LANCZOS)
    expected = compared.theirs("image", sampler, image=image, strength=strength)
    *_, large = upscale.enlarge(net, small, times=1, tile=0)
    assert isinstance(large, decode.RGBImage)
    return _equal(compared.ours(sampler, start_of(strength), Canvas(images.lanczos(large, 96, 128))), expected)


@functools.cache
def upscaler() -> upscale.Upscaler:
    torch.manual_seed(0)
    return upscale.Upscaler.from_config(make_checkpoint.upscaler_config(tiny=True)).eval()


# --- what steers


@dataclass(frozen=True)
class Net:
    """One image that steers, in both programs. `kind` is make_checkpoint's: controlnet, union, t2i."""

    kind: str = "controlnet"
    about: tuple[tuple[str, Any], ...] = ()  # of its config
    seed: int = 1
    weight: float = 0.8
    start: float = 0.0
    end: float = 1.0
    shows: str = "canny"

    @property
    def image(self) -> Image.Image:
        """Its own; grey for an adapter that looks at one channel."""
        rows = numpy.random.default_rng(self.seed).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
        made = Image.fromarray(rows)
        return made.convert("L") if dict(self.about).get("channels") == 1 else made


NETS: Mapping[str, tuple[tuple[Net, ...], str]] = {  # and what they act beside
    "one ControlNet": ((Net(),), "text"),
    "two with windows": ((Net(end=0.6), Net(seed=2, weight=0.4, start=0.3, end=0.9)), "text"),
    "guessing": ((Net(),), "guess"),
    "pooled": ((Net(about=(("global_pool_conditions", True),)),), "text"),
    "a ControlNet and an image": ((Net(),), "image"),
    "a ControlNet and a mask": ((Net(),), "mask"),
    "a Union": ((Net("union"),), "text"),
    "a Union of two images": ((Net("union", end=0.7), Net("union", seed=2, weight=0.5, shows="depth")), "text"),
    "a Union and an image": ((Net("union"),), "image"),
    "a T2I-Adapter": ((Net("t2i"),), "text"),
    "a T2I-Adapter for grey": ((Net("t2i", about=(("channels", 1),)),), "text"),
}
CONTROLLED: Mapping[str, Mapping[str, Any]] = {
    "text": {"sd15": diffusers.StableDiffusionControlNetPipeline, "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
             "union": diffusers.StableDiffusionXLControlNetUnionPipeline},
    "image": {"sd15": diffusers.StableDiffusionControlNetImg2ImgPipeline,
              "sdxl": diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
              "union": diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline},
    "mask": {"sd15": diffusers.StableDiffusionControlNetInpaintPipeline,
             "sdxl": diffusers.StableDiffusionXLControlNetInpaintPipeline},
    "t2i": {"sd15": diffusers.StableDiffusionAdapterPipeline, "sdxl": diffusers.StableDiffusionXLAdapterPipeline},
}  # fmt: skip


def loaded_net(folder: Path, family: str, net: Net) -> Any:
    """diffusers' class as sdcli loads it, written where it is not there yet."""
    path = folder / f"{family}-{net.kind}-{'-'.join(map(str, net.about))}-{0 if net.kind == 'union' else net.seed}"
    about = {"tiny": True, "seed": net.seed, **dict(net.about)}
    if not path.exists() and net.kind == "union":
        make_checkpoint.write_union_folder(path, **about)
    elif not path.exists():
        write = {"controlnet": make_checkpoint.write_controlnet_folder, "t2i": make_checkpoint.write_t2i_folder}
        write[net.kind](path, family, **about)
    read_net = controlnet.read(path)
    return load.load(
        read_net.part, read_net.component, dtype=torch.float32, device="cpu", channels_last=False
    ).module  # fmt: skip


def steered(compared: Compared, folder: Path, which: str, sampler: str) -> bool:
    """diffusers' latents beside ours, each with nets of its own."""
    nets, beside = NETS[which]
    union = nets[0].kind == "union"
    theirs, own = ([loaded_net(folder, compared.family, net) for net in nets[: 1 if union else None]] for _ in range(2))
    expected = _their_steered(compared, theirs, nets, beside, sampler)
    return _equal(_our_steered(compared, own, nets, beside, sampler), expected)


def _their_steered(compared: Compared, made: list[Any], nets: tuple[Net, ...], beside: str, sampler: str) -> Tensor:
    kind = nets[0].kind
    images, weights = [net.image for net in nets], [net.weight for net in nets]
    given: dict[str, Any] = {"width": 64, "height": 64}
    if kind == "t2i":
        given |= {"image": images[0], "adapter_conditioning_scale": weights[0]}
        return compared.by(CONTROLLED["t2i"][compared.family], {"adapter": made[0]}, sampler, **given)
    started = {"image": picture(), "strength": 0.6} if beside in ("image", "mask") else {}
    name = "control_image" if started or kind == "union" else "image"
    each: dict[str, Any] = {
        name: images, "controlnet_conditioning_scale": weights,
        "control_guidance_start": [net.start for net in nets], "control_guidance_end": [net.end for net in nets],
    }  # fmt: skip
    if kind == "union":
        each["control_mode"] = [SHOWN[net.shows] for net in nets]
    elif len(nets) == 1:
        each = {key: values[0] for key, values in each.items()}
    mask = {"mask_image": mask_picture()} if beside == "mask" else {}
    pipeline = CONTROLLED["text" if beside == "guess" else beside]["union" if kind == "union" else compared.family]
    given |= {**started, **mask, **each, "guess_mode": beside == "guess"}
    return compared.by(pipeline, {"controlnet": made[0] if len(made) == 1 else made}, sampler, **given)


def _our_steered(compared: Compared, made: list[Any], nets: tuple[Net, ...], beside: str, sampler: str) -> Tensor:
    if nets[0].kind == "t2i":
        calls = find(sampler).unet_calls(STEPS)
        # diffusers lets SDXL's act in as many UNet calls as there are steps, though some samplers take twice as many
        end = STEPS / calls if compared.family == "sdxl" else 1.0
        image = control.adapter_rows_of([nets[0].image.convert("RGB")], made[0].config.in_channels)
        return compared.steered(sampler, [control.Adapted(net=made[0], image=image, weight=nets[0].weight, end=end)])
    steering: list[control.Steering] = []
    for net in made:
        control.embedded_once(net)
    if nets[0].kind == "union":
        told = tuple(
            control.Told(
                image=control.pixels(net.image), weight=net.weight, start=net.start, end=net.end, shows=SHOWN[net.shows]
            )
            for net in nets
        )
        steering.append(control.United(net=made[0], told=told))
    else:
        steering += [
            control.Control(
                net=module, image=control.pixels(net.image), weight=net.weight, start=net.start, end=net.end,
                guess=beside == "guess",
            )
            for module, net in zip(made, nets, strict=True)
        ]  # fmt: skip
    if beside in ("image", "mask"):
        start = start_of(0.6, Repaint() if beside == "mask" else None)
        canvas = Canvas(picture(), mask_picture() if beside == "mask" else None)
        return compared.ours(sampler, start, canvas, steering=steering)
    return compared.steered(sampler, steering)


MODES = {
    "image-to-image": from_image, "repainting": repainted, "editing": edited, "second pass": second_pass,
    "second pass by a model": second_by_model,
}  # fmt: skip
CHANNELS = {"repainting": (4, 9), "editing": (8,)}  # of the UNet, where they are not 4


def compared_in(folder: Path, family: str, channels: int = 4) -> Compared:
    path = folder / f"{family}-{channels}"
    if not path.exists():
        make_checkpoint.write_folder(path, family, tiny=True, channels=channels)
    return Compared(family, pipeline_of(path, torch.float32))


# --- damaged files

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {}, "JPEG": {}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "AVIF": {},
}  # fmt: skip
MUTATIONS = int(os.environ.get("SDCLI_PROOF_FILES", "10000"))


def damaged(path: Path, format: str, copies: int) -> Iterator[str]:
    """What became of each of many copies of an image in which a few bytes were changed, dropped or doubled."""
    buffer, changes = io.BytesIO(), random.Random(format)
    Image.effect_noise((48, 32), 60).convert("RGB").save(buffer, format, exif=Image.Exif(), **FORMATS[format])
    for _ in range(copies):
        path.write_bytes(_mutated(buffer.getvalue(), changes))
        try:
            found = read.look(path)
        except SdcliError as error:
            yield "refused" if isinstance(error, (BadFile, Usage)) and error.message else f"{error!r}"
        else:
            yield "read" if found.width * found.height <= read.MOST_PIXELS else "too large"


def _mutated(content: bytes, changes: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(changes.randint(1, 6)):
        at, kind = changes.randrange(len(made)), changes.randrange(4)
        if kind == 0:
            made[at] = changes.randrange(256)
        elif kind == 1 and len(made) > 60:
            del made[at : at + changes.randint(1, 40)]
        elif kind == 2:
            made[at:at] = made[at : at + changes.randint(1, 40)]
        else:
            made[at : at + 4] = changes.randbytes(4)
    return bytes(made)


def _steering_rows(root: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Every sampler: PNDM too where nothing starts in the middle."""
    for family, (which, (nets, beside)) in itertools.product(FAMILIES, NETS.items()):
        if nets[0].kind == "union" and family != "sdxl":
            continue
        names = EXACT if beside in ("image", "mask") else [sampler.name for sampler in SAMPLERS]
        compared = compared_in(root, family)
        wrong = [name for name in names if not steered(compared, root, which, name)]
        first = f"; first {wrong[0]}" if wrong else ""
        yield f"{which}, {family}", f"{len(names) - len(wrong)} of {len(names)} equal{first}", "all", not wrong


def main() -> list[tuple[str, str, str, bool]]:
    rows = []
    torch.set_num_threads(1)  # tiny layers: several threads would only wait for each other
    with quiet.libraries_silenced(), tempfile.TemporaryDirectory() as root:
        for mode, family in itertools.product(MODES, FAMILIES):
            for channels in CHANNELS.get(mode, (4,)):
                rows.append(_row(Path(root), mode, family, channels))
        rows.append(_row(Path(root), "image-to-image", "refiner", 4))
        pair, shares = pair_in(Path(root) / "pair"), (0.3, 0.6, 0.9)
        refined = list(itertools.product(OF_FIRST_ORDER, shares))
        wrong = [case for case in refined if not equal(pair, *case)]
        seen = f"{len(refined) - len(wrong)} of {len(refined)} equal" + (f"; first {wrong[0]}" if wrong else "")
        rows.append(("SDXL with its refiner", seen, "all", not wrong))
        rows += list(_steering_rows(Path(root)))
        each = -(-MUTATIONS // len(FORMATS))
        outcomes = Counter(end for format in FORMATS for end in damaged(Path(root) / "damaged", format, each))
        seen = ", ".join(f"{count:,} {end}" for end, count in outcomes.most_common())
        rows.append(
            (f"{sum(outcomes.values()):,} damaged files", seen, "read or refused", set(outcomes) <= {"read", "refused"})
        )
    return rows


def _row(root: Path, mode: str, family: str, channels: int) -> tuple[str, str, str, bool]:
    compared = compared_in(root, family, channels)
    cases = list(itertools.product(EXACT, STRENGTHS))
    wrong = [case for case in cases if not MODES[mode](compared, *case)]
    what = f"{mode}, {family}" + (", nine channels" if channels == 9 else "")
    first = f"; first {wrong[0]}" if wrong else ""
    return what, f"{len(cases) - len(wrong)} of {len(cases)} equal{first}", "all", not wrong
