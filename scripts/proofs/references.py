"""Reference images: our latents beside those of diffusers' pipelines with the same IP-Adapter and components."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import diffusers  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from scripts.gpu.inside import pipeline_of  # noqa: E402
from scripts.proofs.modes import EXACT, GUIDANCE, Compared, generators, picture  # noqa: E402
from sdcli.asking import references  # noqa: E402
from sdcli.draw import attention, denoise, encode, load, quiet, schedulers  # noqa: E402
from sdcli.draw.control import Control  # noqa: E402
from sdcli.draw.denoise import Guidance  # noqa: E402
from sdcli.draw.encode import Text  # noqa: E402
from sdcli.draw.place import Components  # noqa: E402
from sdcli.draw.reference import References  # noqa: E402
from sdcli.images.read import InputImage, look  # noqa: E402
from sdcli.machine.hardware import Hardware  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.models.reference import read_encoder  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.request.jobs import make_jobs  # noqa: E402
from sdcli.request.request import Reference, Request  # noqa: E402
from sdcli.request.samplers import find  # noqa: E402
from sdcli.sizes import GIB  # noqa: E402

NAME = "references"
CLAIM = (
    "Drawing from reference images with tiny SD1.5 and SDXL equals diffusers' pipelines to the bit: IP-Adapter, Plus "
    "and the one for whole faces, fp32, every sampler, at the weights 0.5 and 1; two images, two images a batch."
)

FAMILIES = ("sd15", "sdxl")
KINDS = ("plain", "plus", "full")
WEIGHTS = (0.5, 1.0)
STEPS = 3
CPU = Hardware(
    device="cpu", name="a CPU", source="os", total=64 * GIB, free=64 * GIB, ram_total=64 * GIB, ram_free=64 * GIB,
    threads=1, dtypes={"fp32": "probed"},
)  # fmt: skip


@contextmanager
def as_many_attentions() -> Iterator[None]:
    """In each of SDXL's blocks as in the real one: style and layout enter in layers that others lack."""
    with mock.patch.dict(make_checkpoint.TINY["sdxl"]["unet"], layers_per_block=2):
        yield


def write_models(root: Path) -> dict[str, Path]:
    with as_many_attentions():
        return {family: make_checkpoint.write_folder(root / family, family, tiny=True) for family in FAMILIES}


def write_adapters(root: Path) -> dict[tuple[str, str], Path]:
    """Beside their image encoder, as in IP-Adapter's own repository."""
    make_checkpoint.write_image_encoder(root / "image_encoder")
    with as_many_attentions():
        return {
            (family, kind): make_checkpoint.write_ip_adapter(
                root / f"{family}-{kind}.safetensors", family, kind, tiny=True
            )
            for family, kind in itertools.product(FAMILIES, KINDS)
        }


def write_photos(root: Path) -> list[InputImage]:
    """Wide, tall, and of the encoder's own size."""
    found = []
    for width, height in ((83, 50), (41, 97), (32, 32)):
        picture(width, height).save(root / f"{width}.png")
        found.append(look(root / f"{width}.png"))
    return found


# --- theirs


def their_pipeline(model: Path, adapter: Path) -> Any:
    """With the adapter in it; weights lie where torch puts them, and not where they lie in a file: where addresses are
    odd, torch multiplies in another order."""
    pipeline = pipeline_of(model, torch.float32)
    encoder = read_encoder(adapter.parent / "image_encoder").component
    pipeline.register_modules(
        image_encoder=load.load(
            "image_encoder", encoder, dtype=torch.float32, device="cpu", channels_last=False
        ).module,
        feature_extractor=CLIPImageProcessorPil(size=32, crop_size=32),
    )
    stored: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(adapter).items():
        start, _, rest = name.partition(".")
        stored[start][rest] = tensor.clone()
    pipeline.load_ip_adapter(stored, subfolder="", weight_name="")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def opened(image: InputImage) -> Image.Image:
    with Image.open(image.path) as file:
        return file.convert("RGB")


def theirs(
    pipeline: Any, kind: str, texts: tuple[Text, Text], used: Sequence[Reference], sampler: str, *, images: int = 1,
    guidance: float = GUIDANCE, scale: Any = None, **given: Any,
) -> Tensor:  # fmt: skip
    known, (prompt, negative), before = find(sampler), texts, pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, known.scheduler).from_config(pipeline.scheduler.config, **known.options)
    pipeline.set_ip_adapter_scale(used[0].weight if scale is None else scale)
    given |= {"prompt_embeds": prompt.embeds, "negative_prompt_embeds": negative.embeds}
    if prompt.pooled is not None:
        given |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    if len(used) == 1:
        given["ip_adapter_image"] = opened(used[0].image)
    else:  # several at once would be encoded together
        with torch.no_grad():
            pairs = [pipeline.encode_image(opened(one.image), "cpu", 1, kind != "plain") for one in used]
        sides = (1, 0) if guidance > 1 else (0,)
        given["ip_adapter_image_embeds"] = [
            torch.cat([torch.stack([pair[side] for pair in pairs], dim=1) for side in sides])
        ]
    latents: Tensor = pipeline(
        num_inference_steps=STEPS, guidance_scale=guidance, num_images_per_prompt=images, width=64, height=64,
        output_type="latent", generator=generators(images), **given,
    ).images  # fmt: skip
    pipeline.scheduler = before  # its config would pass this sampler's options on to the next
    return latents


# --- ours


def own_pipeline(model: Path) -> Any:
    """Of which our loop takes the UNet, each layer knowing its name."""
    pipeline = pipeline_of(model, torch.float32)
    attention.set_attention(pipeline.unet, "fused", functional.scaled_dot_product_attention, named=True)
    return pipeline


@dataclass(frozen=True)
class Ours:
    """What a run has: the model with its adapter, and what that makes of images."""

    model: Path
    adapter: Path

    def referred(self, used: Sequence[Sequence[Reference]], guidance: float = GUIDANCE) -> dict[str, dict[str, Any]]:
        """For a batch: the references of each image."""
        request = Request(
            prompts=("a cat",), seeds=(7,), width=64, height=64, guidance=guidance, sampler="Euler",
            reference=tuple(used[0]), reference_model=str(self.adapter), pins={"dtype": "fp32"},
        )  # fmt: skip
        jobs = [replace(make_jobs(request)[0], references=tuple(each)) for each in used]
        model, beside = references.gather(request, jobs, resolve.at(self.model), ())
        plan = make_plan(request, model, CPU, {}, jobs=jobs[:1], adapters=beside)
        components, seen = Components(model, plan.setup), References(model)
        needed = seen.needed(jobs)
        for part, work in (("image_encoder", seen.encode), ("ip_adapter", seen.attend)):
            list(components.ready([part]))
            work(components, part, needed)
        return seen.referred(jobs, (8, 8), (64, 64), [None] * len(jobs), torch.device("cpu"))


def drawn(
    pipeline: Any, texts: tuple[Text, Text], referred: dict[str, Any], sampler: str, *, images: int = 1,
    guidance: float = GUIDANCE, first: int = 0, controls: Sequence[Control] = (), **grouping: bool,
) -> Tensor:  # fmt: skip
    """What a run does between encoding and decoding, on the pipeline's UNet. `first`: of the images, the one that a
    generator begins with."""
    scheduler, sides = schedulers.make(sampler, pipeline.scheduler.config), 2 if guidance > 1 else 1
    schedulers.set_steps(scheduler, STEPS)
    drawing = generators(first + images)[first:]
    conditioning = encode.conditioning(
        [texts[0]] * images, [texts[1]] * images, guidance=Guidance(scale=guidance, sides=sides), size=(64, 64),
        unet=pipeline.unet.config, groups=denoise.groups(images, sides, **grouping),
    )  # fmt: skip
    conditioning = replace(conditioning, referred=referred).steered(controls, len(scheduler.timesteps))
    at = denoise.begin(scheduler, drawing, shape=(4, 8, 8), dtype=torch.float32, device="cpu")
    *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, drawing)
    return last.latents


def texts_of(family: str, pipeline: Any) -> tuple[Text, Text]:
    """A prompt and a negative one, made up: how texts are encoded is not at issue."""
    compared = Compared(family, pipeline)
    return compared.text(1), compared.text(2)


def main() -> list[tuple[str, str, str, bool]]:
    rows = []
    torch.set_num_threads(1)  # tiny layers: several threads would only wait for each other
    with quiet.libraries_silenced(), tempfile.TemporaryDirectory() as root:
        models, adapters, photos = write_models(Path(root)), write_adapters(Path(root)), write_photos(Path(root))
        for family, kind in itertools.product(FAMILIES, KINDS):
            path = adapters[family, kind]
            pipeline, own = their_pipeline(models[family], path), own_pipeline(models[family])
            texts, ours = texts_of(family, own), Ours(models[family], path)
            for count, images in ((1, 1), (2, 1), (2, 2)):
                cases = list(itertools.product((*EXACT, "PNDM"), WEIGHTS if count == 1 else WEIGHTS[:1]))
                wrong = []
                for sampler, weight in cases:
                    used = [Reference(image=photo, weight=weight) for photo in photos[:count]]
                    expected = theirs(pipeline, kind, texts, used, sampler, images=images)
                    latents = drawn(own, texts, ours.referred([used] * images), sampler, images=images)
                    if not (torch.isfinite(expected).all() and torch.equal(latents, expected)):
                        wrong.append((sampler, weight))
                what = f"{family} {kind}, {count} reference{'s' * (count > 1)}, {images} image{'s' * (images > 1)}"
                first = f"; first {wrong[0]}" if wrong else ""
                rows.append((what, f"{len(cases) - len(wrong)} of {len(cases)} equal{first}", "all", not wrong))
    return rows


if __name__ == "__main__":
    print(*main(), sep="\n")
