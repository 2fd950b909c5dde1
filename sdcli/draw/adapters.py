"""LoRAs folded into the weights as they are read, in fp32 before any other dtype; the vectors of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdcli.draw.weights import Piece, Reader, pieces
from sdcli.errors import BadFile, ModelMissing
from sdcli.models import embedding, lora
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter
from sdcli.request import tokenizer
from sdcli.terminal import show


@dataclass(frozen=True)
class Term:
    """What one LoRA adds to one weight: scale · alpha/rank · up·down."""

    fitted: lora.Fitted
    scale: float
    stored: Mapping[str, Piece]
    file: str

    def add(self, weight: Tensor, reader: Reader) -> None:
        """To `weight`, which is fp32 and on the CPU."""
        tensors = {part: _exact(self.stored[name], reader) for part, name in self.fitted.parts.items()}
        down, up = (next(tensors[part] for part in parts if part in tensors) for parts in (lora.DOWN, lora.UP))
        alpha = tensors.get("alpha")
        factor = self.scale * self.fitted.scaling(None if alpha is None else float(alpha.reshape(-1)[0]))
        middle = tensors.get(lora.MID)
        if middle is None:
            delta = up.flatten(1) @ down.flatten(1)
        else:  # a convolution in three steps
            delta = torch.einsum("or,rskl,si->oikl", up.flatten(1), middle, down.flatten(1))
        if not torch.isfinite(delta).all():
            raise BadFile(
                f"{show(self.file)} is damaged: what it adds to {show(self.fitted.layer.shown, 120)} is not finite"
            )
        weight.add_(delta.reshape(weight.shape), alpha=factor)


Additions = Mapping[str, Sequence[Term]]  # name of a weight within its component → what is added to it, in order


def additions(component: str, model: Model, adapters: Iterable[Adapter]) -> dict[str, list[Term]]:
    """What these adapters add to one component of the model."""
    terms: dict[str, list[Term]] = {}
    for adapter in adapters:
        if adapter.kind != "lora" or component == "vae":  # no LoRA adds to a VAE
            continue
        matched = lora.match(_path(adapter), model)
        stored = pieces([str(matched.path)])
        for fitted in matched.fitted:
            if fitted.layer.component != component:
                continue
            term = Term(fitted, adapter.scale, stored, str(matched.path))
            terms.setdefault(f"{fitted.layer.name.removeprefix('text_model.')}.weight", []).append(term)
    return terms


@dataclass(frozen=True)
class Learned:
    """The words that stand for an embedding's vectors, and these vectors by text encoder, in fp32."""

    words: tokenizer.Words
    vectors: Mapping[str, Tensor]


def learned(model: Model, adapters: Iterable[Adapter]) -> Learned:
    words: dict[str, tuple[int, ...]] = {}
    rows: dict[str, list[Tensor]] = {}
    embeddings = [adapter for adapter in adapters if adapter.kind == "embedding"]
    following = tokenizer.vocabulary(model.vocabulary).size if embeddings else 0
    for adapter in embeddings:
        file = embedding.read(_path(adapter), model)
        stored = pieces([str(file.path)])
        ids = tuple(range(following, following + file.vectors))
        following += file.vectors
        words |= dict.fromkeys(file.words(adapter.word or adapter.name), ids)
        with Reader() as reader:
            for encoder, name in file.tensors.items():
                values = _exact(stored[name], reader)
                rows.setdefault(encoder, []).append(values.reshape(file.vectors, -1))
    return Learned(words, {encoder: torch.cat(parts) for encoder, parts in rows.items()})


def _path(adapter: Adapter) -> Path:
    if adapter.path is None:
        raise ModelMissing(f"no file is recorded for {show(adapter.name, 80)}", hint="sdcli help formats")
    return Path(adapter.path)


def _exact(piece: Piece, reader: Reader) -> Tensor:
    values = torch.empty(piece.shape, dtype=torch.float32)
    reader.read(piece, values)
    return values
