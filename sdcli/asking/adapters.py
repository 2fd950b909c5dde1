"""The requested LoRAs, embeddings and VAE: located, checked against the model, hashed, ready for the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sdcli.errors import BadFile, ModelMissing, Offline, Usage
from sdcli.machine import memories
from sdcli.machine.folders import cache_folder
from sdcli.models import adapter_files, cache, hub_cache, hub_name
from sdcli.models.adapter_files import SearchFolder
from sdcli.models.hub_cache import Snapshot
from sdcli.models.hub_name import HubName
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter, PlanWarning
from sdcli.request.request import Job, Request
from sdcli.request.tags import extract_loras
from sdcli.terminal import show

UNMATCHED, PASSED_OVER = "lora-unmatched", "embedding-passed-over"  # shown before drawing
Tags = tuple[tuple[str, float], ...]
# brings a "LoRA" or a "ControlNet" for this model here; gives its name with commit and file
Fetch = Callable[[HubName, Model, str], HubName]


class ModelWithAdapters(NamedTuple):
    """The adapters, and the model, which may have another VAE now."""

    model: Model
    adapters: tuple[Adapter, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()


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


class Mention(NamedTuple):
    """A word of a prompt, in small letters, and the files in added folders that it may stand for."""

    word: str
    files: tuple[Path, ...]


KnownWords = Mapping[str, Sequence[Path]]


def known_words(folders: Iterable[Path]) -> KnownWords:
    """The words that embeddings in these folders stand for, as `sdcli models` last listed them."""
    folders = tuple(folders)
    if not folders:
        return {}
    from sdcli.models import listing  # not for those who have none

    return listing.learned_words(listing.recall(cache_folder() / "listing.json"), folders)


def named_in(texts: Iterable[str], words: KnownWords) -> tuple[Mention, ...]:
    """The known words that stand in these texts on their own; the longest first, so that its letters count once."""
    if not words:
        return ()
    from sdcli.request import tokenizer  # not for those who have none

    left = "\n".join(dict.fromkeys(texts))
    folded = left.casefold()
    named: list[Mention] = []
    for word in sorted((word for word in words if word in folded), key=len, reverse=True):
        shorter, count = tokenizer.alone(word).subn("\n", left)
        files = tuple(path for path in words[word] if count and path.is_file())
        if files:
            left = shorter
            named.append(Mention(word, files))
    return tuple(named)


def texts_of(jobs: Iterable[Job]) -> Iterator[str]:
    for job in jobs:
        yield from (job.prompt, job.negative_prompt)


def same_embeddings(jobs: Iterable[Job], words: KnownWords, adapters: Iterable[Adapter], model: Model) -> Iterator[Job]:
    """Jobs as they come; a later one may not name an embedding that the first did not load."""
    taken = {adapter.word.casefold() for adapter in adapters}
    for job in jobs:
        named = (one for one in named_in(texts_of([job]), words) if one.word not in taken)
        new = next((one for one in named if _fits(one, model)[0]), None)
        if new is not None:
            raise Usage(
                f'prompt {job.index + 1} names the embedding "{show(new.word, 60)}", the first does not: '
                "a run loads the same for all its prompts",
                hint=f'the same command with --embedding "{show(new.files[0], 300)}"',
            )
        yield job


def fitting(named: Iterable[Mention], model: Model) -> tuple[tuple[Mention, ...], tuple[PlanWarning, ...]]:
    """Each with the one file that fits the model. A word whose embeddings are all for other models is a plain word,
    with a warning: nobody asked for the file, it only has the name."""
    chosen: list[Mention] = []
    warnings: list[PlanWarning] = []
    for candidate in named:
        fits, misfit = _fits(candidate, model)
        if len(fits) > 1:
            raise Usage(
                f'"{show(candidate.word, 60)}" in the prompt is {len(fits)} embeddings: '
                f"{', '.join(show(path, 120) for path in fits[:3])}",
                hint=f'the same command with --embedding "{show(fits[0], 300)}"',
            )
        if fits:
            chosen.append(candidate._replace(files=tuple(fits)))
        elif misfit is not None:
            message = f'"{show(candidate.word, 60)}" in the prompt is a plain word: {misfit.message}'
            warnings.append(PlanWarning(code=PASSED_OVER, message=message))
    return tuple(chosen), tuple(warnings)


def _fits(named: Mention, model: Model) -> tuple[list[Path], BadFile | None]:
    """The files that fit, and why another does not."""
    from sdcli.models import embedding  # not for those who name none

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
    named: Iterable[Mention] = (),
) -> ModelWithAdapters:  # fmt: skip
    """Every file located and checked against the model before anything is loaded; the Hub's are fetched first.
    `named` are the embeddings that the prompts name without a flag."""
    named, warnings = fitting(named, model)
    if not (request.lora or tags or request.embeddings or request.vae_file or named):
        return ModelWithAdapters(model=model, warnings=warnings)
    folders = tuple(folders)
    where = adapter_files.search_folders(model, folders)
    adapters: list[Adapter] = []
    for text in request.lora:
        name, scale = adapter_files.weighted(text)
        at_hub = adapter_files.at_hub(name)
        if at_hub is None:
            adapters.append(_lora(adapter_files.find(name, "LoRA", where), scale, model))
        else:
            adapters.append(_from_hub(at_hub, scale, model, fetch, request.offline))
    for name, scale in tags:
        adapters.append(_lora(adapter_files.find(name, "LoRA", where, paths=False), scale, model))
    adapters += _embeddings(request.embeddings, named, where, model)
    model, vae = with_vae(request, model, folders)
    return ModelWithAdapters(model=model, adapters=(*adapters, *vae), warnings=(*warnings, *_warnings(adapters)))


def with_loras(request: Request, names: Iterable[str]) -> Request:
    """With those of these LoRAs that it does not name itself."""
    named = {Path(adapter_files.weighted(text)[0]).stem for text in request.lora}
    more = (name for name in names if Path(name).stem not in named)
    return replace(request, lora=(*request.lora, *more))


def check_swept(job: Job, adapters: Sequence[Adapter]) -> None:
    """Each LoRA whose weight is swept must be one of the run's, by its short name."""
    there = [one.name for one in adapters if one.kind == "lora"]
    for one in job.lora_weights:
        if there.count(one.name) != 1:
            raise Usage(
                f"--sweep lora.{show(one.name, 60)}: {there.count(one.name)} LoRAs of the run have that name; there "
                f"are {', '.join(show(name, 60) for name in there)}",
                hint="sdcli help sweeps",
            )


def with_vae(request: Request, model: Model, folders: Iterable[Path]) -> tuple[Model, tuple[Adapter, ...]]:
    """The model with the VAE that was asked for, and that VAE."""
    if not request.vae_file:
        return model, ()
    path = adapter_files.find(request.vae_file, "VAE", adapter_files.search_folders(model, folders))
    return adapter_files.with_vae(model, path), (_adapter(path, "vae"),)


def located(adapters: Iterable[Adapter], model: Model, folders: Iterable[Path]) -> tuple[Adapter, ...]:
    """Recorded adapters with their files on this machine, which must be the same: other bytes draw other images."""
    where = adapter_files.search_folders(model, folders)
    with_files: list[Adapter] = []
    for adapter in adapters:
        at_hub = hub_name.parse(adapter.hub)
        if at_hub is not None:
            path = _cached(at_hub).path
        else:
            path = adapter_files.find(adapter.name, _FOUND_AS[adapter.kind], where, paths=False)
        sha256 = _sha256_of(path, adapter.kind)
        if sha256 != adapter.sha256:
            raise BadFile(
                f"{show(path)} is not the {_CALLED.get(adapter.kind, _FOUND_AS[adapter.kind])} recorded: its sha256 "
                f"begins with {sha256[:12]}, not {adapter.sha256[:12]}",
                hint="get the file that was used then",
            )
        with_files.append(replace(adapter, path=str(path)))
    return tuple(with_files)


_FOUND_AS = {
    "lora": "LoRA", "embedding": "embedding", "vae": "VAE", "controlnet": "ControlNet", "t2i-adapter": "ControlNet",
}  # fmt: skip
_CALLED = {"t2i-adapter": "T2I-Adapter"}


def _sha256_of(path: Path, kind: str) -> str:
    """Of all its files, where it may be a folder."""
    if kind not in ("controlnet", "t2i-adapter"):
        return cache.sha256_of(path, _memory())
    from sdcli.models import controlnet  # of no use to most commands

    return cache.sha256_of_all(controlnet.read(path).component.files, _memory())


def _from_hub(name: HubName, scale: float, model: Model, fetch: Fetch | None, offline: bool) -> Adapter:
    snapshot = in_cache(name, model, "LoRA", fetch, offline)
    return of_hub(_lora(snapshot.path, scale, model), name, snapshot)


def in_cache(name: HubName, model: Model, what: str, fetch: Fetch | None, offline: bool) -> Snapshot:
    """From the cache, without asking the Hub, if it is there."""
    cached = hub_cache.file(hub_cache.folder(os.environ), name)
    if cached is None and fetch is not None and not offline:
        name = fetch(name, model, what)
        cached = hub_cache.file(hub_cache.folder(os.environ), name)
    return cached or _cached(name, offline)


def of_hub(adapter: Adapter, name: HubName, snapshot: Snapshot) -> Adapter:
    """Under its name there, with its commit; refused where its bytes are others than the Hub's."""
    expected = hub_cache.expected_sha256(snapshot.path)
    if expected not in (None, adapter.sha256):
        raise BadFile(
            f"{show(name, 200)} in the Hugging Face cache differs from the Hub's file: its sha256 begins with "
            f"{adapter.sha256[:12]}, not {expected[:12]}",
            hint=f"sdcli models rm {show(name.repository, 120)}   (then the same command again)",
        )
    usual = snapshot.path.name in (hub_name.USUAL, *hub_name.COMPONENT)
    short = name.repository.split("/")[1] if usual else snapshot.path.stem
    folder = next(path for path in snapshot.path.parents if path.name == snapshot.revision)
    file = snapshot.path.relative_to(folder).as_posix()
    return replace(adapter, name=short, hub=str(HubName(name.repository, snapshot.revision, file)))


def _cached(name: HubName, offline: bool = False) -> Snapshot:
    snapshot = hub_cache.file(hub_cache.folder(os.environ), name)
    if snapshot is None:
        message = f"{show(name, 200)} is not in the Hugging Face cache of this machine"
        hint = f'sdcli pull "{show(name, 300)}"'
        if offline:
            raise Offline(f"{message}, and offline mode forbids downloading it", hint=f"{hint}   (not in offline mode)")
        raise ModelMissing(message, hint=hint)
    return snapshot


def _lora(path: Path, scale: float, model: Model) -> Adapter:
    from sdcli.models import lora  # not for those who draw without

    matched = lora.match(path, model)
    return replace(
        _adapter(path, "lora", scale), tensors_sha256=adapter_files.tensors_sha256(path, _memory()),
        matched=len(matched.fitted), unmatched=len(matched.unmatched),
    )  # fmt: skip


def _embeddings(
    asked: Iterable[str], named: Iterable[Mention], where: tuple[SearchFolder, ...], model: Model
) -> Iterator[Adapter]:  # fmt: skip
    from sdcli.models import embedding  # not for those who name none

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
    for candidate in named:
        if candidate.word not in taken:  # what a flag says goes before
            (path,) = candidate.files
            word = path.stem if path.stem.casefold() == candidate.word else candidate.word
            taken |= dict.fromkeys((one.casefold() for one in embedding.read(path, model).words(word)), path)
            yield replace(_adapter(path, "embedding"), word=word)


def _adapter(path: Path, kind: str, scale: float = 1.0) -> Adapter:
    return Adapter(name=path.stem, sha256=cache.sha256_of(path, _memory()), scale=scale, path=str(path), kind=kind)


def _memory() -> memories.Store:
    return memories.store("hashes")


def _warnings(adapters: Iterable[Adapter]) -> Iterator[PlanWarning]:
    for adapter in adapters:
        if adapter.unmatched:
            of = adapter.matched + adapter.unmatched
            yield PlanWarning(
                code=UNMATCHED,
                message=f"{adapter.unmatched} of {of} layers of the LoRA {show(adapter.name, 60)} fit no layer of the "
                "model and are left out",
            )  # fmt: skip
