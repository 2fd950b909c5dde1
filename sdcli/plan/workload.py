"""The shapes one UNet call is made of, by how much of its work they are: what is worth measuring on a machine."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from sdcli.models import unet
from sdcli.models.model import Model
from sdcli.models.trace import Leaf
from sdcli.models.vae import scale
from sdcli.plan.techniques.attention import FEWEST_KEYS
from sdcli.request.request import Job

MOST_LAYERS = 12  # shapes; in SD1.5 and SDXL the heaviest twelve are more than half of the work


class AttentionShape(NamedTuple):
    """Attention of every one of `keys` tokens to all of them; `heads` of all images."""

    heads: int
    keys: int
    width: int


class LayerShape(NamedTuple):
    """A convolution of `size` (height, width), or a product of `size` (rows)."""

    inward: int
    outward: int
    kernel: int  # 0: a product
    size: tuple[int, ...]
    images: int

    @property
    def macs(self) -> int:
        return self.images * math.prod(self.size) * self.inward * self.outward * max(1, self.kernel) ** 2


class Workload(NamedTuple):
    """Shapes, and how often a UNet call has each; the layers heaviest first."""

    attentions: tuple[tuple[AttentionShape, int], ...]
    layers: tuple[tuple[LayerShape, int], ...]
    macs: int  # of all convolutions and products, also those left out of `layers`

    @property
    def key(self) -> str:
        """Equal for equal shapes, whatever the model is called."""
        from hashlib import sha256  # slow to load

        return sha256(repr((self.attentions, self.layers)).encode()).hexdigest()[:16]


def workload(model: Model, job: Job, images: int) -> Workload:
    """Of one call for this job, with as many `images` in it (guidance's two sides count as two)."""
    edge = scale(model.components["vae"].config)
    config = model.components["unet"].config
    call = unet.analyse(config, height=job.height // edge, width=job.width // edge)
    attentions = Counter(found for leaf in call.leaves if (found := _attention(leaf, images)) is not None)
    work: Counter[LayerShape] = Counter()
    often: Counter[LayerShape] = Counter()
    for leaf in call.leaves:
        shape = _layer(leaf, images)
        if shape is not None:
            work[shape] += leaf.macs
            often[shape] += 1
    heaviest = [shape for shape, _ in work.most_common(MOST_LAYERS)]
    return Workload(
        attentions=tuple(sorted(attentions.items(), reverse=True)),
        layers=tuple((shape, often[shape]) for shape in heaviest),
        macs=images * sum(work.values()),
    )


def _attention(leaf: Leaf, images: int) -> AttentionShape | None:
    """Self-attention over enough tokens for blocks to matter."""
    if leaf.kind != "attention":
        return None
    _, heads, queries, width = leaf.output_shape
    return AttentionShape(images * heads, queries, width) if leaf.keys == queries >= FEWEST_KEYS else None


def _layer(leaf: Leaf, images: int) -> LayerShape | None:
    if leaf.kind == "linear":
        outward, inward = leaf.weight_shape
        return LayerShape(inward, outward, 0, leaf.output_shape[1:-1], images)
    if leaf.kind != "convolution" or len(set(leaf.kernel)) != 1:
        return None
    outward, inward = leaf.weight_shape[:2]
    return LayerShape(inward, outward, leaf.kernel[0], leaf.output_shape[2:], images)
