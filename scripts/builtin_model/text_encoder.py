"""The text encoder: a small CLIPTextModel with its own vocabulary, taught what words mean before any picture.

Every caption of a thing is led to that thing's code; any other word to a blend of the codes of the things nearest to it
in the teacher's eyes, so that a word never shown with a picture still lands on something that can be drawn.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.builtin_model import teacher
from scripts.builtin_model.artwork import Thing
from scripts.builtin_model.autoencoder import keep, rate
from scripts.builtin_model.captions import Captions, Meaning
from scripts.builtin_model.pictures import GROUNDS, HUES
from scripts.builtin_model.synonyms import HELD_OUT
from sdcli.request.tokenizer import cut_as_clip_does

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
SHARPNESS = 0.03  # of the blend: one that is nearer by this much counts e times more


@dataclass(frozen=True)
class Recipe:
    vocabulary: int = 8192
    width: int = 256
    layers: int = 2
    words: int = 50_000  # of the language's most frequent
    steps: int = 2400
    captions: int = 96  # in a batch
    others: int = 128  # words in a batch
    rate: float = 1.5e-3


@dataclass(frozen=True)
class Lessons:
    """Codes of the things, and the word list with what each word should be."""

    codes: Tensor  # [things, width of a code]
    words: list[str]
    blends: Tensor  # [words, things], fp16
    weights: np.ndarray[Any, Any]  # how often each word is asked


# --- the vocabulary


def train_vocabulary(captions: Captions, recipe: Recipe, folder: Path) -> None:
    """Byte pairs learned on the captions and the word list, in the files CLIP's tokenizer reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    found = cut_as_clip_does(Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")))
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - 256 - 2, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words = frequent(recipe.words)
    texts = [word for place, word in enumerate(words) for _ in range(max(1, 2000 // (place + 20)))]
    texts += captions.words() * 20
    found.train_from_iterator(texts, trainer)
    model = json.loads(found.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(sign + "</w>" for sign in alphabet)]
    kept = []
    known = set(tokens)
    for left, right in merges:
        if left in known and right in known and left + right not in known and len(tokens) < recipe.vocabulary - 2:
            known.add(left + right)
            tokens.append(left + right)
            kept.append(f"{left} {right}")
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    table = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *kept]) + "\n", encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH).save_pretrained(
        folder
    )


def frequent(count: int, shortest: int = 3) -> list[str]:
    from wordfreq import top_n_list

    return [word for word in top_n_list("en", count) if word.isascii() and word.isalpha() and len(word) >= shortest]


def known_words(captions: Captions, recipe: Recipe) -> list[str]:
    """Every word that the encoder was taught, in any of the three languages."""
    found = {*captions.words(), *frequent(recipe.words, 1), *"一只个的和"}
    return sorted({unicodedata.normalize("NFC", word).lower() for word in found})


def new(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    size = len(tokenizer)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=recipe.width, intermediate_size=2 * recipe.width, projection_dim=recipe.width,
            num_hidden_layers=recipe.layers, num_attention_heads=4, max_position_embeddings=LENGTH,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, hidden_act="gelu",
        )
    )  # fmt: skip


# --- what is taught


def lessons(things: Sequence[Thing], captions: Captions, recipe: Recipe, kept: Path) -> Lessons:
    names = [thing.name.lower() for thing in things]
    vectors = teacher.meanings(names)
    words = frequent(recipe.words)
    likeness = _likeness(teacher.kept_meanings(words, kept), vectors, captions)
    top = likeness.max(1).values
    weights = np.array([1 / (place + 50) ** 0.5 for place in range(len(words))])
    weights *= np.where(top.numpy() > 0.5, 8.0, np.where(top.numpy() > 0.4, 2.0, 0.3))
    taught = {name for names in captions.names["en"] for name in names}
    weights *= np.array([0.0 if word in taught else 1.0 for word in words])  # captions teach those
    blends = torch.softmax(likeness / SHARPNESS, dim=1)
    return Lessons(_codes(vectors), words, blends.half(), weights / weights.sum())


def fitting(things: Sequence[Thing]) -> Callable[[int, str], bool]:
    """An English tag means its thing where the teacher has that thing among the three nearest."""
    vectors = teacher.meanings([thing.name.lower() for thing in things])
    tags = sorted(
        {tag.lower() for thing in things for tag in thing.tags["en"]}
        | {word for thing in things for word in thing.name.lower().split()}
    )
    near = (teacher.meanings(tags) @ vectors.T).topk(3, dim=1).indices
    table = {tag: set(row.tolist()) for tag, row in zip(tags, near, strict=True)}
    return lambda thing, tag: thing in table.get(tag, {thing})


def _likeness(words: Tensor, names: Tensor, captions: Captions) -> Tensor:
    """To a thing: to its name and to the nearest of its other names, mixed."""
    plain = words @ names.T
    best = plain.clone()
    others = [(thing, name) for thing, every in enumerate(captions.names["en"]) for name in every[1:]]
    near = words @ teacher.meanings([name for _, name in others]).T
    for column, (thing, _) in enumerate(others):
        best[:, thing] = torch.maximum(best[:, thing], near[:, column])
    return 0.3 * plain + 0.7 * best


def _codes(vectors: Tensor) -> Tensor:
    """Meanings turned so that their main directions are even: alike things stay alike, but can be told apart."""
    centred = vectors - vectors.mean(0)
    left, strength, _ = torch.linalg.svd(centred, full_matrices=False)
    codes = functional.normalize(left * strength**0.4, dim=1) * len(vectors) ** 0.5
    return functional.pad(codes, (0, max(0, len(vectors) - codes.shape[1])))  # as wide as there are things


# --- training


class Student(torch.nn.Module):
    """The encoder with heads that are thrown away: code of the thing, colour, ground."""

    def __init__(self, encoder: CLIPTextModel, code: int, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.code = torch.nn.Linear(recipe.width, code)
        self.hue = torch.nn.Linear(recipe.width, len(HUES) + 1)
        self.ground = torch.nn.Linear(recipe.width, len(GROUNDS) + 1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = self.encoder(ids).last_hidden_state[:, 1:]
        pooled = states.mean(1)
        return self.code(pooled), self.hue(pooled), self.ground(pooled)


def train(
    things: Sequence[Thing], captions: Captions, recipe: Recipe, folder: Path, kept: Path, seed: int, device: str,
    say: Callable[[str], None],
) -> CLIPTextModel:  # fmt: skip
    """Resumes from `kept`; the vocabulary is in `folder`."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    student = Student(new(recipe, tokenizer), len(things), recipe).to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    begun = 0
    if kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        begun = state["step"]
    if begun >= recipe.steps:
        return student.encoder.eval()
    taught = lessons(things, captions, recipe, kept.with_name("meanings.pt"))
    random = np.random.default_rng(seed + begun)
    codes = taught.codes.to(device)
    started = time.monotonic()
    for step in range(begun, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rate(step, recipe.steps)
        texts, blends, hues, grounds = _lesson(taught, captions, recipe, random)
        length = int(random.choice((16, 24, 40, LENGTH), p=(0.6, 0.25, 0.1, 0.05)))
        ids = tokens(tokenizer, texts, length).to(device)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            code, hue, ground = student(ids)
        wanted = blends.to(device).float() @ codes
        far = functional.mse_loss(code.float(), wanted)
        loss = far + 0.3 * functional.cross_entropy(hue.float(), hues.to(device))
        loss = loss + 0.3 * functional.cross_entropy(ground.float(), grounds.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            seen = knows(student, tokenizer, taught, things, device)
            speed = (step + 1 - begun) / (time.monotonic() - started)
            say(f"text encoder {step + 1}/{recipe.steps}  loss {loss.item():.3f}  {seen}  {speed:.1f} steps/s")
        if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            keep(state, kept)
    return student.encoder.eval()


def tokens(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int = LENGTH) -> Tensor:
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def _lesson(
    taught: Lessons, captions: Captions, recipe: Recipe, random: np.random.Generator
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    things = len(taught.codes)
    hues, grounds = list(HUES), list(GROUNDS)
    texts, rows, colours, backs = [], [], [], []
    for _ in range(recipe.captions):
        thing = int(random.integers(things))
        hue = hues[random.integers(len(hues))] if random.random() < 0.3 else None
        ground = grounds[random.integers(len(grounds))] if random.random() < 0.25 else None
        texts.append(captions.any(Meaning(thing, hue, ground), random))
        rows.append(functional.one_hot(torch.tensor(thing), things).half())
        colours.append(hues.index(hue) + 1 if hue else 0)
        backs.append(grounds.index(ground) + 1 if ground else 0)
    for chosen in random.choice(len(taught.words), size=recipe.others, p=taught.weights):
        hue = hues[random.integers(len(hues))] if random.random() < 0.15 else None
        texts.append(captions.said(taught.words[chosen], Meaning(0, hue), "en", random))
        rows.append(taught.blends[chosen])
        colours.append(hues.index(hue) + 1 if hue else 0)
        backs.append(0)
    return texts, torch.stack(rows), torch.tensor(colours), torch.tensor(backs)


@torch.no_grad()
def knows(student: Student, tokenizer: CLIPTokenizer, taught: Lessons, things: Sequence[Thing], device: str) -> str:
    """How many held-out words land nearest to their thing."""
    names = [thing.name for thing in things]
    pairs = [(word, names.index(name)) for word, name in HELD_OUT.items() if name in names]
    if not pairs:
        return ""
    code = student(tokens(tokenizer, [f"a {word}" for word, _ in pairs], 24).to(device))[0]
    near = functional.normalize(code.float(), dim=1) @ functional.normalize(taught.codes.to(device), dim=1).T
    right = sum(int(row.argmax()) == thing for row, (_, thing) in zip(near, pairs, strict=True))
    return f"synonyms {right}/{len(pairs)}"
