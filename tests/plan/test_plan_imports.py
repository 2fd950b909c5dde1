"""Planning imports nothing heavy, and importing it does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "rich", "pydantic", "typer")
PROGRAM = """
import sys
from sdcli.cli import plan_screen
from sdcli.plan import fallbacks, planner, refusal
sys.path.insert(0, {here!r})
from making import asking, gpu, jobs_of, known_model
request = asking("sdxl")
plan = planner.make_plan(request, known_model("sdxl"), gpu(8), {{}}, jobs=jobs_of(request))
plan_screen.render(plan)
fallbacks.after_out_of_memory(plan, 0, plan.setup, "decode")
refusal.refused(plan)
print([name for name in {heavy!r} if name in sys.modules])
"""


def test_a_plan_is_made_and_shown_without_torch_or_anything_else_heavy(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    program = PROGRAM.format(here=str(here), heavy=HEAVY)
    root = here.parents[1]
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []
