"""stable-diffusion.cpp, by its Python binding, from one file in the original layout.

python -m scripts.peers.with_cpp make|draw JOB
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from scripts.peers.peer import GUIDANCE, PROMPT, SEED, Job, Peer, job_from, program, tell, without

MODULE = "scripts.peers.with_cpp"


def path_of(job: Job) -> Path:
    return Path(job.made) / f"{job.family}.safetensors"


def make(job: Job) -> None:
    """Of the same seed as the folder: the same weights."""
    from scripts.make_checkpoint import write_file

    if not path_of(job).exists():
        partial = path_of(job).with_suffix(".partial")
        write_file(partial, job.family, dtype="fp16")
        partial.rename(path_of(job))


def draw(job: Job) -> None:
    started = time.perf_counter()
    from stable_diffusion_cpp import StableDiffusion

    imported = time.perf_counter()
    model = StableDiffusion(model_path=str(path_of(job)), n_threads=job.threads, vae_decode_only=True, verbose=False)
    ready = time.perf_counter()
    marks: list[float] = []

    def progress(step: int, steps: int, _seconds: float) -> None:
        """It also counts what it loads: that counts to other numbers."""
        if steps == job.steps and step == len(marks):
            marks.append(time.perf_counter())

    image = model.generate_image(
        prompt=PROMPT, width=job.width, height=job.height, cfg_scale=GUIDANCE, sample_method="dpm++2m",
        scheduler="karras", sample_steps=job.steps, seed=SEED, progress_callback=progress,
    )[0]  # fmt: skip
    done = time.perf_counter()
    image.save(job.image)
    tell(imports=imported - started, load=ready - imported, marks=marks, done=done, dtype="fp16", threads=job.threads)


PEERS = (
    Peer(
        name="stable-diffusion.cpp",
        how="stable-diffusion.cpp as it comes, by its Python binding, built from source for this processor; the same "
        "weights in one file of the original layout, in fp16",
        packages=("stable-diffusion-cpp-python",),
        command=program(MODULE, "draw"),
        prepare=program(MODULE, "make"),
        missing=lambda: without("stable_diffusion_cpp", "stable-diffusion-cpp-python"),
        files=lambda job: [path_of(job)],
        any_width=False,
    ),
)

if __name__ == "__main__":
    {"make": make, "draw": draw}[sys.argv[1]](job_from(sys.argv[2]))
