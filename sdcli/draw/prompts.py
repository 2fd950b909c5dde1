"""The encoded prompts of a window of batches, each text encoded once, and the conditioning of a batch's UNet calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sdcli.draw import denoise, encode
from sdcli.draw.adapters import Learned, learned
from sdcli.draw.denoise import Conditioning, Guidance
from sdcli.draw.encode import Encoder, Text
from sdcli.draw.place import Components
from sdcli.errors import BadFile
from sdcli.models import families
from sdcli.models.model import Model, role
from sdcli.plan.plan import Adapter
from sdcli.plan.stages import sides
from sdcli.request import tokenizer
from sdcli.request.prompt import Chunk
from sdcli.request.request import Job


class Key(NamedTuple):
    text: str
    emphasis: str
    clip_skip: int


Column = list[Text]  # one encoder's output for a list of texts


class Prompts:
    """The texts encoded so far for one model; those no longer needed are dropped."""

    def __init__(self, model: Model, adapters: Sequence[Adapter] = (), known: Learned | None = None) -> None:
        self._model = model
        self._vocabulary = model.vocabulary
        self._learned = learned(model, adapters) if known is None else known
        self._unet = model.components["unet"].config
        self._zeros = model.empty_is_zeros
        self._texts: dict[Key, Text] = {}

    def of_refiner(self) -> Prompts | None:
        """For the model's refiner, which knows the same embeddings: its encoder is one of the base's."""
        refiner = self._model.refiner
        return None if refiner is None else Prompts(refiner, known=self._learned)

    def needed(self, jobs: Sequence[Job]) -> list[Key]:
        """The texts a batch needs: no negative prompts without guidance or where zeros stand for them, and the empty
        prompt only as padding where lengths differ."""
        keys = [_key(job, job.prompt) for job in jobs]
        if sides(self._model, jobs[0]) > 1:
            keys += [_key(job, text) for job in jobs if (text := self._negative(job)) is not None]
        if len({len(self._chunks(key)) for key in keys}) > 1:
            keys += [_key(job, "") for job in jobs]
        return list(dict.fromkeys(keys))

    def keep(self, keys: Iterable[Key]) -> None:
        """Drops all other texts, so that memory does not grow in a long run."""
        needed = set(keys)
        self._texts = {key: text for key, text in self._texts.items() if key in needed}

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        return [key for key in keys if key not in self._texts]

    def tokens(self, job: Job) -> int:
        return self._texts[_key(job, job.prompt)].tokens

    def chunks(self, jobs: Sequence[Job]) -> int:
        """Of the longest text this batch needs."""
        return max(self._texts[key].chunks for key in self.needed(jobs))

    def encode(self, components: Components, part: str, keys: Sequence[Key]) -> Column:
        """These texts through one encoder."""
        with components.use(part) as module:
            encoder = self._encoder(components, part, module)
            return [self._encoded(encoder, key) for key in keys]

    def store(self, keys: Sequence[Key], columns: Sequence[Column]) -> None:
        """Stores the encoders' outputs, one column each, for these texts."""
        self._texts |= {key: encode.joined(parts) for key, *parts in zip(keys, *columns, strict=True)}

    def _chunks(self, key: Key) -> tuple[Chunk, ...]:
        return tokenizer.chunks(key.text, key.emphasis, self._learned.words, self._vocabulary)

    def _encoder(self, components: Components, name: str, module: Any) -> Encoder:
        """The encoder with its family's padding and layer."""
        vocabulary = tokenizer.vocabulary(self._vocabulary)
        part = role(name)
        rows = self._model.components[part].config.get("vocab_size")
        if isinstance(rows, int) and vocabulary.size > rows:
            raise BadFile(f"the model's {name} has {rows} token embeddings, its tokenizer {vocabulary.size} tokens")
        reading = next(encoder for encoder in families.find(self._model.family).encoders if encoder.part == part)
        return Encoder(
            module, components.device_of(name), vocabulary, pad=reading.pad, penultimate=reading.penultimate,
            vectors=self._learned.vectors.get(part),
        )  # fmt: skip

    def _encoded(self, encoder: Encoder, key: Key) -> Text:
        return encode.encode(encoder, self._chunks(key), clip_skip=key.clip_skip, emphasis=key.emphasis)

    def conditioning(
        self, jobs: Sequence[Job], components: Components, size: tuple[int, int], *, alone: bool
    ) -> Conditioning:
        """Of what is drawn at this size. `alone`: each image has its own UNet calls, whatever the batch."""
        start = jobs[0].start
        guidance = Guidance(
            scale=jobs[0].guidance, sides=sides(self._model, jobs[0]),
            image=1.0 if start is None or start.guidance is None else start.guidance,
        )  # fmt: skip
        prompts = [self._texts[_key(job, job.prompt)] for job in jobs]
        words = [self._negative(job) for job in jobs] if guidance.sides > 1 else []
        encoded = [None if text is None else self._texts[_key(jobs[n], text)] for n, text in enumerate(words)]
        pairs = itertools.zip_longest(prompts, encoded)
        own = [max(text.chunks for text in texts if text is not None) for texts in pairs]
        chunks = max(own)
        prompts = [self._filled(job, text, chunks) for job, text in zip(jobs, prompts, strict=True)]
        negatives = [
            prompts[n].zeros() if text is None else self._filled(jobs[n], text, chunks)
            for n, text in enumerate(encoded)
        ]
        in_turn = components.setup.guidance == "in-turn"
        return encode.conditioning(
            prompts, negatives, guidance=guidance, size=size, unet=self._unet, chunks=own,
            groups=denoise.groups(len(jobs), guidance.sides, in_turn=in_turn, alone=alone, lengths=own),
        ).to(components.device, components.dtype)  # fmt: skip

    def _negative(self, job: Job) -> str | None:
        """None where the job has no negative prompt and zeros stand for it."""
        return None if self._zeros and not job.negative_prompt else job.negative_prompt

    def _filled(self, job: Job, text: Text, chunks: int) -> Text:
        return text if text.chunks == chunks else encode.padded(text, self._texts[_key(job, "")], chunks)


def _key(job: Job, text: str) -> Key:
    return Key(text, job.emphasis, job.clip_skip)
