"""Starting from images, repainting and second passes: our latents beside those of diffusers' pipelines on the same
components. Damaged image files: an image or a typed error."""

from __future__ import annotations

import functools
import io
import itertools
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from sdcli.draw import decode, denoise, encode, images, quiet, schedulers, upscale  # noqa: E402
from sdcli.draw.encode import Text  # noqa: E402
from sdcli.draw.start import Begun, begun, enlarged  # noqa: E402
from sdcli.errors import BadFile, SdcliError, Usage  # noqa: E402
from sdcli.images import read  # noqa: E402
from sdcli.images.canvas import Canvas  # noqa: E402
from sdcli.images.read import InputImage  # noqa: E402
from sdcli.request.request import Repaint, Start, steps_taken  # noqa: E402
from sdcli.request.samplers import SAMPLERS, find  # noqa: E402

NAME = "modes"
CLAIM = (
    "Image-to-image, repainting (with UNets of four and nine channels) and second passes (from enlarged latents, and "
    "from images that an ESRGAN net enlarged) of tiny SD1.5 and SDXL equal "
    "diffusers' pipelines to the bit: fp32, every sampler but PNDM, which diffusers starts wrongly in the middle, each "
    "at the strengths 0.35, 0.6 and 1. Ten thousand damaged image files give an image or a typed error."
)

FAMILIES = ("sd15", "sdxl")
STRENGTHS = (0.35, 0.6, 1.0)
STEPS, GUIDANCE = 10, 5.0
EXACT = tuple(sampler.name for sampler in SAMPLERS if sampler.name != "PNDM")
PIPELINES: Mapping[str, Mapping[str, Any]] = {
    "image": {
        "sd15": diffusers.StableDiffusionImg2ImgPipeline, "sd2": diffusers.StableDiffusionImg2ImgPipeline,
        "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    },
    "mask": {
        "sd15": diffusers.StableDiffusionInpaintPipeline, "sd2": diffusers.StableDiffusionInpaintPipeline,
        "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
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
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return Text(embeds, torch.randn((1, width), generator=generator))

    def theirs(self, mode: str, sampler: str, count: int = 1, **given: Any) -> Any:
        known, (prompt, negative) = find(sampler), (self.text(1), self.text(2))
        other = PIPELINES[mode][self.family].from_pipe(self.pipeline)
        other.scheduler = getattr(diffusers, known.scheduler).from_config(other.scheduler.config, **known.options)
        other.set_progress_bar_config(disable=True)
        given = {"prompt_embeds": prompt.embeds, "negative_prompt_embeds": negative.embeds, **given}
        if prompt.pooled is not None:
            given |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
        return other(
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, num_images_per_prompt=count,
            generator=generators(count), **{"output_type": "latent", **given},
        ).images  # fmt: skip

    def ours(self, sampler: str, start: Start | None, made: Canvas, count: int = 1) -> Tensor:
        """What a run does between encoding texts and decoding."""
        vae, sees_mask, drawing = self.pipeline.vae, self.pipeline.unet.config.in_channels == 9, generators(count)
        encoded = images.encoded(vae, start, made, 8, sees_mask, decode.in_fp32)
        all_begun = begun(
            [start] * count, [encoded] * count, drawing, vae.config, shape=_shape(made), dtype=torch.float32,
            sees_mask=sees_mask,
        )  # fmt: skip
        taken = STEPS if start is None else steps_taken(STEPS, start.strength)
        pure = start is not None and start.repaint is not None and start.strength == 1.0
        return self._drawn(sampler, all_begun, drawing, taken, pure)

    def second(self, sampler: str, small: Tensor, size: tuple[int, int], taken: int) -> Tensor:
        drawing = generators(1)
        all_begun = enlarged(small, drawing, shape=(4, *size), dtype=torch.float32)
        return self._drawn(sampler, all_begun, drawing, taken)

    def _drawn(
        self, sampler: str, start: Begun, drawing: list[torch.Generator], taken: int, pure: bool = False
    ) -> Tensor:
        scheduler, unet, count = (
            schedulers.make(sampler, self.pipeline.scheduler.config),
            self.pipeline.unet,
            len(drawing),
        )
        schedulers.set_steps(scheduler, STEPS)
        timesteps = schedulers.last_timesteps(scheduler, STEPS, taken)
        height, width = start.noise.shape[-2:]
        conditioning = encode.conditioning(
            [self.text(1)] * count, [self.text(2)] * count, guidance=GUIDANCE, guided=True,
            size=(width * 8, height * 8), unet=unet.config, groups=denoise.groups(count, True),
        ).starting(start, torch.device("cpu"))  # fmt: skip
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


MODES = {
    "image-to-image": from_image, "repainting": repainted, "second pass": second_pass,
    "second pass by a model": second_by_model,
}  # fmt: skip


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


def main() -> list[tuple[str, str, str, bool]]:
    rows = []
    torch.set_num_threads(1)  # tiny layers: several threads would only wait for each other
    with quiet.libraries_silenced(), tempfile.TemporaryDirectory() as root:
        for (mode, equals), family, channels in itertools.product(MODES.items(), FAMILIES, (4, 9)):
            if channels == 9 and mode != "repainting":
                continue
            compared = compared_in(Path(root), family, channels)
            cases = list(itertools.product(EXACT, STRENGTHS))
            wrong = [case for case in cases if not equals(compared, *case)]
            what = f"{mode}, {family}" + (", nine channels" if channels == 9 else "")
            first = f"; first {wrong[0]}" if wrong else ""
            rows.append((what, f"{len(cases) - len(wrong)} of {len(cases)} equal{first}", "all", not wrong))
        each = -(-MUTATIONS // len(FORMATS))
        outcomes = Counter(end for format in FORMATS for end in damaged(Path(root) / "damaged", format, each))
        seen = ", ".join(f"{count:,} {end}" for end, count in outcomes.most_common())
        rows.append(
            (f"{sum(outcomes.values()):,} damaged files", seen, "read or refused", set(outcomes) <= {"read", "refused"})
        )
    return rows
