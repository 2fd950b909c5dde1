"""What the modes start from and are steered by: made once, beside the weights."""

from __future__ import annotations

from PIL import Image

from scripts import make_checkpoint
from scripts.peers.peer import Job


def write(job: Job, tiny: bool) -> None:
    if job.mode == "text":
        return
    if not job.picture.exists():
        gradient = Image.linear_gradient("L").resize((job.width, job.height))
        Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).save(job.picture)
    if job.mode == "control" and not (job.net / "config.json").exists():
        make_checkpoint.write_controlnet_folder(job.net, job.family, tiny=tiny, dtype="fp16")
    if job.mode == "reference" and not job.adapter.exists():
        name = "tiny" if tiny else "ViT-bigG" if job.family == "sdxl" else "ViT-H"
        make_checkpoint.write_image_encoder(job.adapter.parent / "image_encoder", name, dtype="fp16")
        make_checkpoint.write_ip_adapter(job.adapter, job.family, "plain", encoder=name, tiny=tiny, dtype="fp16")
