"""Smaller parts of drawing: attention, probe, out-of-memory, previews."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from sdcli.draw import attention, preview, probe
from sdcli.draw.oom import is_out_of_memory
from sdcli.models.families import families, find
from sdcli.plan.techniques.attention import Blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "keys", "heads", "width"), [(256, 256, 3, 40), (1000, 1000, 5, 64), (300, 777, 1, 160)]
)
def test_blocked_attention_is_attention_within_rounding(
    dtype: torch.dtype, tokens: int, keys: int, heads: int, width: int
) -> None:
    generator = torch.Generator("cpu").manual_seed(tokens)
    query, key, value = (
        torch.randn((2, count, heads, width), generator=generator).to(dtype).transpose(1, 2)
        for count in (tokens, keys, keys)
    )
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    own = (attention.blocked(query, key, value, Blocks(rows=2, queries=128)).double() - exact).abs().max()
    # queries, scores and weights are each rounded once to the dtype, scores of order ten
    assert own <= 10 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)


def test_blocked_attention_in_bf16_is_as_exact_as_a_unet_needs() -> None:
    """Its error against fp32 stays within a small factor of the fused kernel's."""
    generator = torch.Generator("cpu").manual_seed(0)
    query, key, value = (torch.randn((2, 8, 1024, 40), generator=generator) for _ in range(3))
    exact = functional.scaled_dot_product_attention(query, key, value)
    half = [part.bfloat16() for part in (query, key, value)]
    own = (attention.blocked(*half, Blocks(rows=2, queries=256)).float() - exact).square().mean().sqrt()
    fused = (functional.scaled_dot_product_attention(*half).float() - exact).square().mean().sqrt()
    assert own <= 3 * fused


def test_the_probe_knows_that_fp16_is_not_for_cpus_and_leaves_the_threads_as_they_were() -> None:
    torch.set_num_threads(1)
    probed = probe.probe("cpu", threads=2)
    assert probed.dtypes["fp32"] == "probed" and probed.dtypes["fp16"] == "unavailable"
    assert probed.dtypes["bf16"] in ("probed", "unavailable")
    assert probed.ratio["fp32"] == 1.0 and set(probed.ratio) <= {"fp32", "bf16"}
    assert torch.get_num_threads() == 1  # unchanged


def test_a_dtype_that_computes_wrongly_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = functional.conv2d

    def wrong(image: torch.Tensor, weight: torch.Tensor, **given: int) -> torch.Tensor:
        result = real(image, weight, **given)
        return result * 1.2 if image.dtype == torch.bfloat16 and weight.shape[-1] == 1 else result

    monkeypatch.setattr(functional, "conv2d", wrong)
    assert probe.probe("cpu").dtypes["bf16"] == "unavailable"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.78 GiB",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 4294967296 bytes.",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 8.81 GB, other allocations: 1.05 GB)",
        "Invalid buffer size: 20.00 GiB",
    ],
)
def test_every_wording_of_out_of_memory_is_recognised(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("out of memory"),
        KeyboardInterrupt("out of memory"),
    ],
)
def test_other_failures_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("x"))


def test_torchs_failure_to_allocate_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("family", list(families()))
def test_a_preview_is_a_small_image_whatever_the_latents(family: str) -> None:
    for latents in (torch.randn(4, 6, 9) * 14, torch.zeros(4, 6, 9), torch.full((4, 6, 9), float("nan"))):
        width, height, pixels = preview.preview(latents, find(family).colours)
        assert (width, height, len(pixels)) == (9, 6, 9 * 6 * 3)
    flat = torch.tensor([2.0, 0.0, 0.0, -2.0]).view(4, 1, 1).expand(4, 2, 2)
    bright, dark = (preview.preview(sign * flat, find("sd15").colours)[2] for sign in (1, -1))
    assert min(bright) > 127 > max(dark)


def test_a_preview_of_other_latents_has_the_colours_their_model_names() -> None:
    rows = tuple((0.0, 0.0, 0.5 if channel == 6 else 0.0) for channel in range(8))
    latents = torch.zeros(8, 2, 3)
    latents[6] = 1.0
    grey_blue = bytes((128, 128, 191)) * 6
    assert preview.preview(latents, rows) == (3, 2, grey_blue)
    white = (*rows, (1.0, 1.0, 1.0))
    assert preview.preview(torch.zeros(8, 2, 3), white)[2] == b"\xff" * 18
    usual = find("builtin").colours  # a model that names none still has a preview
    assert preview.preview(latents, usual)[:2] == (3, 2)


def test_importing_the_engine_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys; from sdcli.draw import local; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
