"""Which jobs share a batch: those that one UNet call can serve."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from sdcli.request.request import PER_IMAGE, Job

# everything that the images of a batch share
_SHARED = ("unet_calls", *(name for name in PER_IMAGE if name != "negative_prompt"))
WINDOW = 64  # batches whose prompts are encoded together, before any of them is denoised


def in_batches(jobs: Sequence[Job], batch_size: int) -> tuple[tuple[int, ...], ...]:
    """Positions in `jobs`, grouped by size, steps, sampler and guidance, at most `batch_size` each, order kept."""
    groups: dict[tuple[object, ...], list[list[int]]] = {}
    for position, job in enumerate(jobs):
        chunks = groups.setdefault((*[getattr(job, name) for name in _SHARED], _kind(job)), [[]])
        if len(chunks[-1]) == max(1, batch_size):
            chunks.append([])
        chunks[-1].append(position)
    return tuple(sorted(tuple(chunk) for chunks in groups.values() for chunk in chunks))


def _kind(job: Job) -> tuple[object, ...]:
    """How it starts, is steered and ends: images of a batch may start from different ones, in the same way."""
    start = () if job.start is None else (job.start.strength, job.start.repaint is not None, job.start.guidance)
    controls = tuple((one.net, one.weight, one.start, one.end) for one in job.controls)
    references = tuple((one.weight, one.layers, one.mask is not None) for one in job.references)
    return start, job.second, job.refined, controls, references, job.lora_weights


Batch = tuple[int, tuple[Job, ...]]  # its number, unique in the run, and its jobs


def windows_of(batches: Iterable[Batch]) -> Iterator[Sequence[Batch]]:
    """Batches whose prompts are encoded together: a list is looked ahead into, a stream is not."""
    if isinstance(batches, Sequence):
        for first in range(0, len(batches), WINDOW):
            yield batches[first : first + WINDOW]
    else:
        for batch in batches:
            yield [batch]


def missing(batches: Iterable[Batch], there: Collection[int]) -> list[Batch]:
    """Those with an image that is not there yet. They are drawn whole: an image may depend on the others."""
    return [(number, jobs) for number, jobs in batches if any(job.index not in there for job in jobs)]


def windows(batches: int) -> int:
    """How many windows a run of this many batches has."""
    return max(1, -(-batches // WINDOW))
