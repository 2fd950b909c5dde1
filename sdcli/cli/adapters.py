"""LoRAs, embeddings and a VAE as they were asked for: found, held against the model, hashed, ready for the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.errors import BadFile, ModelMissing, Offline, Usage
from sdcli.machine import memories
from sdcli.machine.folders import cache_folder
from sdcli.models import adapter_files, cache, embedding, hub_cache, hub_name, lora
from sdcli.models.adapter_files import SearchFolder
from sdcli.models.hub_cache import Snapshot
from sdcli.models.hub_name import HubName
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter, Warning
from sdcli.request import tokenizer
from sdcli.request.prompt import extract_loras
from sdcli.request.request import Job, Request
from sdcli.terminal import show

CODES = UNMATCHED, PASSED_OVER = "lora-unmatched", "embedding-passed-over"  # told before drawing
Tags = tuple[tuple[str, float], ...]
Fetch = Callable[
    [HubName, Model], HubName
]  # brings a LoRA for this model into the cache; its name with commit and file


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
                f"prompt {job.index + 1} asks for other LoRAs than the first; all prompts of a run share their LoRAs",
                hint="--lora FILE:0.8",
            )
        if tags and not prompt:
            raise Usage("the prompt contains only a LoRA", hint='"a cat <lora:NAME:0.8>"')
        yield replace(job, prompt=prompt)


# --- embeddings that prompts name


@dataclass(frozen=True)
class Named:
    """A word of a prompt, in small letters, and the files in added folders that it may stand for."""

    word: str
    files: tuple[Path, ...]


Learned = Mapping[str, Sequence[Path]]


def learned(folders: Iterable[Path]) -> Learned:
    """The words that embeddings in these folders stand for, as `sdcli models` last listed them."""
    folders = tuple(folders)
    if not folders:
        return {}
    from sdcli.models import listing  # not for those who have none

    return listing.learned_words(listing.recall(cache_folder() / "listing.json"), folders)


def named_in(texts: Iterable[str], known: Learned) -> tuple[Named, ...]:
    """The known words that stand in these texts on their own; the longest goes first, and takes its letters away."""
    left = "\n".join(dict.fromkeys(texts))
    folded = left.casefold()
    found: list[Named] = []
    for word in sorted((word for word in known if word in folded), key=len, reverse=True):
        shorter, count = tokenizer.alone(word).subn("\n", left)
        here = tuple(path for path in known[word] if count and path.is_file())
        if here:
            left = shorter
            found.append(Named(word, here))
    return tuple(found)


def texts_of(jobs: Iterable[Job]) -> Iterator[str]:
    for job in jobs:
        yield from (job.prompt, job.negative_prompt)


def as_learned(jobs: Iterable[Job], known: Learned, adapters: Iterable[Adapter], model: Model) -> Iterator[Job]:
    """Jobs that come one by one: the words of later ones must have been learned by then."""
    taken = {adapter.word.casefold() for adapter in adapters}
    for job in jobs:
        here = (one for one in named_in(texts_of([job]), known) if one.word not in taken)
        new = next((one for one in here if _fits(one, model)[0]), None)
        if new is not None:
            raise Usage(
                f'prompt {job.index + 1} names the embedding "{show(new.word, 60)}", the first does not: '
                "a run loads the same for all its prompts",
                hint=f'the same command with --embedding "{show(new.files[0], 300)}"',
            )
        yield job


def meant(named: Iterable[Named], model: Model) -> tuple[tuple[Named, ...], tuple[Warning, ...]]:
    """Each with the one file that fits the model. A word whose embeddings are all for other models is a plain word,
    and that is said: nobody asked for the file, it only has the name."""
    chosen: list[Named] = []
    passed: list[Warning] = []
    for one in named:
        fits, misfit = _fits(one, model)
        if len(fits) > 1:
            raise Usage(
                f'"{show(one.word, 60)}" in the prompt is {len(fits)} embeddings: '
                f"{', '.join(show(path, 120) for path in fits[:3])}",
                hint=f'the same command with --embedding "{show(fits[0], 300)}"',
            )
        if fits:
            chosen.append(replace(one, files=tuple(fits)))
        elif misfit is not None:
            said = f'"{show(one.word, 60)}" in the prompt is a plain word: {misfit.message}'
            passed.append(Warning(code=PASSED_OVER, message=said))
    return tuple(chosen), tuple(passed)


def _fits(named: Named, model: Model) -> tuple[list[Path], BadFile | None]:
    """The files that fit, and why another does not."""
    fits: list[Path] = []
    misfit: BadFile | None = None
    for path in named.files:
        try:
            embedding.read(path, model)
            fits.append(path)
        except BadFile as error:
            misfit = misfit or error
    return fits, misfit


# --- files


def gather(
    request: Request, tags: Tags, model: Model, folders: Iterable[Path], fetch: Fetch | None = None,
    named: Iterable[Named] = (),
) -> Beside:  # fmt: skip
    """Every file found and held against the model before anything is loaded; what the Hub has is fetched first.
    `named` are the embeddings that the prompts name without a flag."""
    named, passed = meant(named, model)
    if not (request.lora or tags or request.embeddings or request.vae_file or named):
        return Beside(model=model, warnings=passed)
    folders = tuple(folders)
    where = adapter_files.search_folders(model, folders)
    adapters: list[Adapter] = []
    for text in request.lora:
        name, scale = adapter_files.weighted(text)
        at_hub = adapter_files.at_hub(name)
        if at_hub is None:
            adapters.append(_lora(adapter_files.find(name, "LoRA", where), scale, model))
        else:
            adapters.append(_from_hub(at_hub, scale, model, None if request.offline else fetch, request.offline))
    for name, scale in tags:
        adapters.append(_lora(adapter_files.find(name, "LoRA", where, paths=False), scale, model))
    adapters += _embeddings(request.embeddings, named, where, model)
    model, vae = with_vae(request, model, folders)
    return Beside(model=model, adapters=(*adapters, *vae), warnings=(*passed, *_warnings(adapters)))


def with_vae(request: Request, model: Model, folders: Iterable[Path]) -> tuple[Model, tuple[Adapter, ...]]:
    """The model with the VAE that was asked for, and that VAE."""
    if not request.vae_file:
        return model, ()
    path = adapter_files.find(request.vae_file, "VAE", adapter_files.search_folders(model, folders))
    return adapter_files.with_vae(model, path), (_adapter(path, "vae"),)


def found_again(adapters: Iterable[Adapter], model: Model, folders: Iterable[Path]) -> tuple[Adapter, ...]:
    """Recorded adapters with their files on this machine, which must be the same: other bytes draw other images."""
    where = adapter_files.search_folders(model, folders)
    names = {"lora": "LoRA", "embedding": "embedding", "vae": "VAE"}
    found: list[Adapter] = []
    for adapter in adapters:
        at_hub = hub_name.parse(adapter.hub)
        if at_hub is not None:
            path = _cached(at_hub).path
        else:
            path = adapter_files.find(adapter.name, names[adapter.kind], where, paths=False)
        held = cache.sha256_of(path, _memory())
        if held != adapter.sha256:
            raise BadFile(
                f"{show(path)} is not the {names[adapter.kind]} recorded: its sha256 begins with {held[:12]}, "
                f"not {adapter.sha256[:12]}",
                hint="get the file that was used then",
            )
        found.append(replace(adapter, path=str(path)))
    return tuple(found)


def _from_hub(name: HubName, scale: float, model: Model, fetch: Fetch | None, offline: bool) -> Adapter:
    """What is in the cache is taken from there, without asking the Hub."""
    here = hub_cache.file(hub_cache.folder(os.environ), name)
    if here is None and fetch is not None:
        name = fetch(name, model)
        here = hub_cache.file(hub_cache.folder(os.environ), name)
    found = here or _cached(name, offline)
    made = _lora(found.path, scale, model)
    told = hub_cache.expected_sha256(found.path)
    if told not in (None, made.sha256):
        raise BadFile(
            f"{show(name, 200)} in the Hugging Face cache differs from the Hub's file: its sha256 begins with "
            f"{made.sha256[:12]}, not {told[:12]}",
            hint=f"sdcli models rm {show(name.repository, 120)}   (then the same command again)",
        )
    short = found.path.stem if found.path.name != hub_name.USUAL else name.repository.split("/")[1]
    file = found.path.relative_to(_snapshot_of(found)).as_posix()
    return replace(made, name=short, hub=str(HubName(name.repository, found.revision, file)))


def _cached(name: HubName, offline: bool = False) -> Snapshot:
    here = hub_cache.file(hub_cache.folder(os.environ), name)
    if here is None:
        lacks = f"{show(name, 200)} is not in the Hugging Face cache of this machine"
        hint = f'sdcli pull "{show(name, 300)}"'
        if offline:
            raise Offline(f"{lacks}, and --offline forbids downloading it", hint=f"{hint}   (without --offline)")
        raise ModelMissing(lacks, hint=hint)
    return here


def _snapshot_of(found: Snapshot) -> Path:
    return next(path for path in found.path.parents if path.name == found.revision)


def _lora(path: Path, scale: float, model: Model) -> Adapter:
    matched = lora.match(path, model)
    return replace(
        _adapter(path, "lora", scale), tensors_sha256=adapter_files.tensors_sha256(path, _memory()),
        matched=len(matched.fitted), unmatched=len(matched.unmatched),
    )  # fmt: skip


def _embeddings(
    asked: Iterable[str], named: Iterable[Named], where: tuple[SearchFolder, ...], model: Model
) -> Iterator[Adapter]:  # fmt: skip
    taken: dict[str, Path] = {}
    for text in asked:
        name, word = adapter_files.with_word(text)
        path = adapter_files.find(name, "embedding", where)
        word = word or path.stem
        for one in embedding.read(path, model).words(word):
            other = taken.setdefault(one.casefold(), path)
            if other != path:
                raise Usage(
                    f'"{show(one, 60)}" would stand for both {show(other, 120)} and {show(path, 120)}',
                    hint=f'--embedding "{show(path, 300)}:WORD"',
                )
        yield replace(_adapter(path, "embedding"), word=word)
    for found in named:
        if found.word not in taken:  # what a flag says goes before
            (path,) = found.files
            word = path.stem if path.stem.casefold() == found.word else found.word
            taken |= dict.fromkeys((one.casefold() for one in embedding.read(path, model).words(word)), path)
            yield replace(_adapter(path, "embedding"), word=word)


def _adapter(path: Path, kind: str, scale: float = 1.0) -> Adapter:
    return Adapter(name=path.stem, sha256=cache.sha256_of(path, _memory()), scale=scale, path=str(path), kind=kind)


def _memory() -> memories.Store:
    return memories.store("hashes")


def _warnings(adapters: Iterable[Adapter]) -> Iterator[Warning]:
    for adapter in adapters:
        if adapter.unmatched:
            of = adapter.matched + adapter.unmatched
            yield Warning(
                code=UNMATCHED,
                message=f"{adapter.unmatched} of {of} layers of the LoRA {show(adapter.name, 60)} fit no layer of the "
                "model and are left out",
            )  # fmt: skip
