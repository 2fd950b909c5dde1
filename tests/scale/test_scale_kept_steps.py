"""--keep-steps with --devices: an image that one process began is finished by the next."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scripts import make_checkpoint
from sdcli.asking import planning
from sdcli.events import Decoded, Event, KeptStep, Step
from sdcli.plan.plan import Plan
from sdcli.scale.pool import Pool, alike
from tests.record.record_samples import plan

# A worker that is killed as it keeps the fourth step of the first image that is ever drawn.
CHILD = """
import os, signal, sys
from pathlib import Path
from sdcli.draw import kept_steps, local
from sdcli.workers import child

kept, written, died = [], kept_steps.write, Path(sys.argv.pop(1))

def write(state):
    kept.append(state)
    if len(kept) == 4 and not died.exists():
        died.touch()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return written(state)

kept_steps.write = write
child.main()
"""


def drawn(pool: Pool, of: Plan, kept: Mapping[int, bytes] | None = None) -> tuple[list[int], list[bytes], bytes]:
    """The steps that were taken, those that were kept, and the image's pixels."""
    found: list[Event] = list(pool.run(of, None, kept))
    (image,) = [event.pixels for event in found if isinstance(event, Decoded)]
    steps = [event.step for event in found if isinstance(event, Step)]
    return steps, [event.state for event in found if isinstance(event, KeptStep)], image


def test_an_image_goes_on_where_the_worker_that_died_or_an_earlier_run_left_it(tmp_path: Path) -> None:
    make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    asked = {
        "words": ("a cat",), "model": str(tmp_path / "tiny"), "steps": "6", "size": "64x64", "seeds": "1",
        "sampler": "DPM++ 2M", "keep_steps": True, "pins": ["execution=eager", "attention=fused"], "dtype": "fp32",
    }  # fmt: skip
    of = planning.plan_for(asked, "plan").plan
    of = replace(of, workers=(of.worker("cpu"),))
    command = (sys.executable, "-P", "-c", CHILD, str(tmp_path / "died"))
    with Pool(command=lambda own: command) as pool:
        steps, kept, image = drawn(pool, of)
        assert steps == [1, 2, 3, 4, 4, 5, 6] and len(kept) == 6
        whole, again, same = drawn(pool, of)
        assert whole == [1, 2, 3, 4, 5, 6] and same == image and again == kept
        rest, _, finished = drawn(pool, of, {0: kept[2]})
        assert rest == [4, 5, 6] and finished == image


def test_no_image_is_finished_by_a_device_that_computes_otherwise() -> None:
    own = plan(1).worker("cpu:1")
    assert alike([own, replace(own, name="cpu:2")])
    assert alike([own, replace(own, setup=replace(own.setup, placement="model-offload"))])
    assert not alike([own, replace(own, hardware=replace(own.hardware, name="another CPU"))])
    assert not alike([own, replace(own, setup=replace(own.setup, threads=1))])
    assert not alike([own, replace(own, setup=replace(own.setup, vae="tile-512"))])
