"""What a job asks for, in the words of every screen."""

from __future__ import annotations

from sdcli.request.request import Job
from sdcli.terminal import counted


def steps_asked(job: Job) -> str:
    """ "20 steps", or of those that start from an image as many as are taken; "16 + 4 steps" of two passes."""
    if job.second is not None:
        return f"{job.steps} + {counted(job.second.steps, 'step')}"
    taken = " + ".join(str(each.taken) for each in job.passes)
    if job.start is None or job.start.guidance is not None:
        return f"{taken} steps" if job.refined is not None else counted(job.steps, "step")
    return f"{taken} of {job.steps} steps (strength {job.start.strength:g})"


def guidance_asked(job: Job) -> str:
    """ "guidance 7.0", and where an image is edited how closely it is kept to."""
    kept = None if job.start is None else job.start.guidance
    return f"guidance {job.guidance:.1f}" + (f", image guidance {kept:.1f}" if kept is not None else "")


def size_asked(job: Job) -> str:
    """ "512×512", and what a second pass makes of it: "512×512, then 1024×1024"."""
    return ", then ".join(dict.fromkeys(f"{each.width}×{each.height}" for each in job.passes))
