"""The text encoder: a small CLIPTextModel with its own vocabulary, taught what words mean before any image.

Every caption is led to the code of its image (scripts/builtin_model/examples.py); any other word to the code of the
thing nearest to it in the teacher's eyes, so that a word never shown with an image still means something to draw.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.builtin_model import teacher, wordnet
from scripts.builtin_model.artwork import Thing
from scripts.builtin_model.autoencoder import keep, rate
from scripts.builtin_model.captions import STYLES, Captions, Meaning
from scripts.builtin_model.examples import Examples
from scripts.builtin_model.synonyms import HELD_OUT, named
from scripts.builtin_model.things import everyday
from sdcli.request.tokenizer import cut_as_clip_does

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
EVERYDAY = 0.05  # how much nearer an everyday thing is to any word
KINDS = 0.3  # how much nearer a word is to the thing that WordNet says it is a kind of
SHARES = {"plain": 0.35, "hue": 0.12, "ground": 0.12, "beside": 0.25, "count": 0.16}  # of the captions


@dataclass(frozen=True)
class Recipe:
    vocabulary: int = 8192
    width: int = 256
    layers: int = 2
    words: int = 50_000  # of the language's most frequent
    steps: int = 6000
    captions: int = 192  # in a batch
    others: int = 112  # words in a batch
    rate: float = 2e-3


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
            vocab_size=size, hidden_size=recipe.width, intermediate_size=4 * recipe.width, projection_dim=recipe.width,
            num_hidden_layers=recipe.layers, num_attention_heads=4, max_position_embeddings=LENGTH,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, hidden_act="gelu",
        )
    )  # fmt: skip


# --- what is taught


@dataclass(frozen=True)
class Words:
    """The word list, with the thing that each word is nearest to."""

    words: list[str]
    nearest: np.ndarray[Any, Any]  # the thing of each word
    weights: np.ndarray[Any, Any]  # how often each word is asked


def near_things(things: Sequence[Thing], captions: Captions, recipe: Recipe, kept: Path) -> Words:
    words = frequent(recipe.words)
    likeness = _likeness(teacher.kept_meanings(words, kept), things, captions)
    likeness += KINDS * wordnet.Kinds(kept.parent).likeness(words, things)
    top, nearest = likeness.max(1)
    weights = np.array([1 / (place + 50) ** 0.5 for place in range(len(words))])
    near = top.numpy()
    weights *= np.select([near > 0.8, near > 0.65, near > 0.6, near > 0.5], [12.0, 8.0, 4.0, 0.1], 0.02)
    taught = {name for names in captions.names["en"] for name in names}
    weights *= np.array([0.0 if word in taught else 1.0 for word in words])  # captions teach those
    return Words(words, nearest.numpy(), weights / weights.sum())


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


def _likeness(words: Tensor, things: Sequence[Thing], captions: Captions) -> Tensor:
    """To a thing: to its name and to the nearest of its other names, mixed; everyday things a little nearer."""
    plain = words @ teacher.meanings([thing.name.lower() for thing in things]).T
    best = plain.clone()
    others = [(thing, name) for thing, every in enumerate(captions.names["en"]) for name in every[1:]]
    near = words @ teacher.meanings([name for _, name in others]).T
    for column, (thing, _) in enumerate(others):
        best[:, thing] = torch.maximum(best[:, thing], near[:, column])
    usual = set(everyday())
    return 0.3 * plain + 0.7 * best + torch.tensor([EVERYDAY if thing.name in usual else 0.0 for thing in things])


# --- training


def train(
    shown: Examples, things: Sequence[Thing], captions: Captions, recipe: Recipe, folder: Path, kept: Path, seed: int,
    device: str, say: Callable[[str], None],
) -> CLIPTextModel:  # fmt: skip
    """Resumes from `kept`; the vocabulary is in `folder`."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    encoder = new(recipe, tokenizer).to(device)
    optimizers = _optimizers(encoder, recipe)
    begun = 0
    if kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        for optimizer, past in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(past)
        begun = state["step"]
    if begun >= recipe.steps:
        return encoder.eval()
    words = near_things(things, captions, recipe, kept.with_name("meanings.pt"))
    started, losses = time.monotonic(), []
    for step in range(begun, recipe.steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = recipe.rate * rate(step, recipe.steps)
        # a step is the same whether or not the training was stopped before
        random = np.random.default_rng((seed, step))
        texts, wanted = _lesson(shown, words, captions, recipe, random)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses.append(sum(_learn(encoder, ids.to(device), wanted[rows].to(device), len(texts), tokenizer.eos_token_id)
                          for ids, rows in _alike(tokenizer, texts, random)))  # fmt: skip
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0:
            speed = (step + 1 - begun) / (time.monotonic() - started)
            seen = knows(encoder, tokenizer, shown, things, captions, device)
            mean = np.mean(losses[-100:])
            say(f"text encoder {step + 1}/{recipe.steps}  loss {mean:.3f}  {seen}  {speed:.1f} steps/s")
        if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
            past = [optimizer.state_dict() for optimizer in optimizers]
            keep({"encoder": encoder.state_dict(), "optimizers": past, "step": step + 1}, kept)
    return encoder.eval()


def _optimizers(encoder: CLIPTextModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for what multiplies, AdamW for tables, norms and biases."""
    inner = [value for name, value in encoder.named_parameters() if value.ndim == 2 and "embedding" not in name]
    rest = [value for name, value in encoder.named_parameters() if value.ndim != 2 or "embedding" in name]
    return [
        torch.optim.Muon(inner, lr=recipe.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def _learn(encoder: CLIPTextModel, ids: Tensor, wanted: Tensor, whole: int, end: int) -> float:
    """From the end of a caption on, every state says all of it."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        states = encoder(ids).last_hidden_state
    after = (ids == end).float()[..., None]
    far = ((states.float() - wanted[:, None]).square() * after).sum((1, 2)) / after.sum((1, 2))
    loss = far.sum() / wanted.shape[1] / whole
    loss.backward()
    return float(loss.detach())


def _alike(
    tokenizer: CLIPTokenizer, texts: Sequence[str], random: np.random.Generator, parts: int = 4
) -> Iterator[tuple[Tensor, list[int]]]:
    """The captions in parts of like length, padded to that and a little more, now and then to the whole length."""
    lengths = [len(ids) for ids in tokenizer(list(texts)).input_ids]
    for rows in np.array_split(np.argsort(lengths, kind="stable"), parts):
        length = min(LENGTH, lengths[rows[-1]] + int(random.integers(1, 5)))
        if random.random() < 0.03:
            length = LENGTH
        yield tokens(tokenizer, [texts[row] for row in rows], length), rows.tolist()


def tokens(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int = LENGTH) -> Tensor:
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def _lesson(
    shown: Examples, words: Words, captions: Captions, recipe: Recipe, random: np.random.Generator
) -> tuple[list[str], Tensor]:
    chosen = [shown.any(random, SHARES) for _ in range(recipe.captions)]
    texts = [captions.any(meaning, random) for _, meaning in chosen]
    for word in random.choice(len(words.words), size=recipe.others, p=words.weights):
        thing = int(words.nearest[word])
        styles = [style for style in STYLES if (thing, style) in shown.plain]
        style = captions.usual(thing) if random.random() < 0.8 else styles[random.integers(len(styles))]
        meaning = Meaning(thing, style)
        texts.append(captions.said(words.words[word], meaning, "en", random))
        chosen.append((shown.plain[thing, style], meaning))
    wanted = shown.codes([row for row, _ in chosen], [meaning for _, meaning in chosen])
    return [*texts, ""], torch.cat([wanted, shown.basis.silence()[None]])


@torch.no_grad()
def knows(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, shown: Examples, things: Sequence[Thing], captions: Captions,
    device: str,
) -> str:  # fmt: skip
    """How many names, names with a style and held-out words land nearest to their thing."""
    plain = list(shown.plain.items())
    rows = [row for _, row in plain]
    table = functional.normalize(shown.codes(rows, [shown.meanings[row] for row in rows]), dim=1)
    names = {thing.name: number for number, thing in enumerate(things)}
    asked = {
        "names": [(f"a {thing.name}", {number}, captions.usual(number)) for number, thing in enumerate(things)][::7],
        "styles": [(f"{things[thing].name}, {style}", {thing}, style) for (thing, style), _ in plain][::17],
        "synonyms": [(f"a {word}", {names.get(name) for name in named(word)}, "") for word in HELD_OUT],
    }
    told = []
    for what, rows in asked.items():
        if rows:
            states = encoder(tokens(tokenizer, [text for text, _, _ in rows], 32).to(device)).last_hidden_state[:, -1]
            near = (functional.normalize(states.float().cpu(), dim=1) @ table.T).argmax(1).tolist()
            found = [plain[row][0] for row in near]
            right = sum(
                seen in fits and style in ("", drawn)
                for (_, fits, style), (seen, drawn) in zip(rows, found, strict=True)
            )
            told.append(f"{what} {right}/{len(rows)}")
    return "  ".join(told)
