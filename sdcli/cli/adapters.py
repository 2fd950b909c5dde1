"""LoRAs, embeddings and a VAE as they were asked for: found, held against the model, hashed, ready for the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.errors import BadFile, Usage
from sdcli.machine import state
from sdcli.models import beside, cache, embedding, lora
from sdcli.models.beside import Place
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter, Warning
from sdcli.request.prompt import extract_loras
from sdcli.request.request import Job, Request
from sdcli.terminal import show

Tags = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What goes beside the model, and the model itself, whose VAE may be another now."""

    model: Model
    adapters: tuple[Adapter, ...] = ()
    warnings: tuple[Warning, ...] = ()


# --- <lora:name:weight> in prompts


def untagged(jobs: Sequence[Job]) -> tuple[tuple[Job, ...], Tags]:
    """The jobs without LoRA tags in their prompts, and these tags, the same in all of them."""
    if not jobs:
        return (), ()
    _, tags = extract_loras(jobs[0].prompt)
    return tuple(without(jobs, tags)), tags


def without(jobs: Iterable[Job], tags: Tags) -> Iterator[Job]:
    """Each job without its tags, which must be `tags`: LoRAs are folded into the weights once for a whole run."""
    for job in jobs:
        prompt, own = extract_loras(job.prompt)
        if own != tags:
            raise Usage(
                f"prompt {job.index + 1} asks for other LoRAs than the first; a run has the same for all its prompts",
                hint='sdcli generate "a cat" --lora FILE:0.8',
            )
        if tags and not prompt:
            raise Usage("the prompt holds nothing but a LoRA", hint='sdcli generate "a cat <lora:NAME:0.8>"')
        yield replace(job, prompt=prompt)


# --- files


def gather(request: Request, tags: Tags, model: Model, folders: Iterable[Path]) -> Beside:
    """Every file found and held against the model before anything is loaded."""
    if not (request.lora or tags or request.embeddings or request.vae_file):
        return Beside(model=model)
    where = beside.places(model, folders)
    adapters: list[Adapter] = []
    for text in request.lora:
        name, scale = beside.weighted(text)
        adapters.append(_lora(beside.find(name, "LoRA", where), scale, model))
    for name, scale in tags:
        adapters.append(_lora(beside.find(name, "LoRA", where, paths=False), scale, model))
    adapters += _embeddings(request.embeddings, where, model)
    if request.vae_file:
        path = beside.find(request.vae_file, "VAE", where)
        model = beside.with_vae(model, path)
        adapters.append(_adapter(path, "vae"))
    return Beside(model=model, adapters=tuple(adapters), warnings=tuple(_warnings(adapters)))


def found_again(adapters: Iterable[Adapter], model: Model, folders: Iterable[Path]) -> tuple[Adapter, ...]:
    """Recorded adapters with their files on this machine, which must be the same: other bytes draw other pictures."""
    where = beside.places(model, folders)
    names = {"lora": "LoRA", "embedding": "embedding", "vae": "VAE"}
    found: list[Adapter] = []
    for adapter in adapters:
        path = beside.find(adapter.name, names[adapter.kind], where, paths=False)
        held = cache.sha256_of(path, _memory())
        if held != adapter.sha256:
            raise BadFile(
                f"{show(path)} is not the {names[adapter.kind]} recorded: its sha256 begins with {held[:12]}, "
                f"not {adapter.sha256[:12]}",
                hint="get the file that was used then",
            )
        found.append(replace(adapter, path=str(path)))
    return tuple(found)


def _lora(path: Path, scale: float, model: Model) -> Adapter:
    matched = lora.match(path, model)
    return replace(
        _adapter(path, "lora", scale), tensors_sha256=beside.tensors_sha256(path, _memory()),
        matched=len(matched.fitted), unmatched=len(matched.unmatched),
    )  # fmt: skip


def _embeddings(asked: Iterable[str], where: tuple[Place, ...], model: Model) -> Iterator[Adapter]:
    taken: dict[str, Path] = {}
    for text in asked:
        name, word = beside.with_word(text)
        path = beside.find(name, "embedding", where)
        word = word or path.stem
        for one in embedding.read(path, model).words(word):
            other = taken.setdefault(one.casefold(), path)
            if other != path:
                raise Usage(
                    f'"{show(one, 60)}" would stand for both {show(other, 120)} and {show(path, 120)}',
                    hint=f'sdcli generate "a cat" --embedding "{show(path, 300)}:WORD"',
                )
        yield replace(_adapter(path, "embedding"), word=word)


def _adapter(path: Path, kind: str, scale: float = 1.0) -> Adapter:
    return Adapter(name=path.stem, sha256=cache.sha256_of(path, _memory()), scale=scale, path=str(path), kind=kind)


def _memory() -> state.Store:
    return state.store("hashes")


def _warnings(adapters: Iterable[Adapter]) -> Iterator[Warning]:
    for adapter in adapters:
        if adapter.unmatched:
            of = adapter.matched + adapter.unmatched
            yield Warning(
                code="lora-unmatched",
                message=f"{adapter.unmatched} of {of} layers of the LoRA {show(adapter.name, 60)} fit no layer of the "
                "model and are left out",
            )  # fmt: skip
