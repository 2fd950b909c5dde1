"""What is worth measuring of a model: its heaviest shapes, counted."""

from __future__ import annotations

from dataclasses import replace

from making import asking, known_model

from sdcli.plan.workload import AttentionShape, LayerShape, workload
from sdcli.request.jobs import make_jobs

JOB = make_jobs(asking("sd15", size=512))[0]


def test_sd15_has_five_attentions_over_4096_tokens_five_over_1024_and_five_over_256() -> None:
    work = workload(known_model("sd15"), JOB, 2)
    assert work.attentions == (
        (AttentionShape(heads=16, keys=4096, width=40), 5),
        (AttentionShape(heads=16, keys=1024, width=80), 5),
        (AttentionShape(heads=16, keys=256, width=160), 5),
    )


def test_the_heaviest_layers_come_first_and_are_more_than_half_of_the_work() -> None:
    work = workload(known_model("sd15"), JOB, 2)
    assert work.layers[0] == (LayerShape(inward=320, outward=320, kernel=3, size=(64, 64), images=2), 7)
    assert LayerShape(inward=320, outward=2560, kernel=0, size=(4096,), images=2) in dict(work.layers)
    assert 0.5 < sum(often * shape.macs for shape, often in work.layers) / work.macs < 0.8
    assert work.macs == workload(known_model("sd15"), JOB, 1).macs * 2


def test_the_key_tells_sizes_batches_and_models_apart_but_not_names() -> None:
    model = known_model("sd15")
    keys = {
        workload(model, JOB, 2).key, workload(model, JOB, 1).key, workload(model, replace(JOB, width=768), 2).key,
        workload(known_model("sdxl"), JOB, 2).key,
    }  # fmt: skip
    assert len(keys) == 4
    assert workload(replace(model, name="another"), JOB, 2).key in keys
