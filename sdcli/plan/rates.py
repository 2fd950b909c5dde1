"""Assumed speeds of hardware, used only as ratios: what moving weights costs, and whether computing hides it."""

from __future__ import annotations

from typing import NamedTuple

from sdcli.machine.hardware import Hardware
from sdcli.plan.techniques.dtype import capability, native_bf16

TERA, GIGA = 1e12, 1e9

# Floating-point operations per second that eager diffusers reaches in a GPU's fastest dtype, by compute capability.
# Published or derived from published it/s: V100-T4-A100-3060-4060 to 4090-H100; the rest assumed between neighbours.
CUDA_RATE = ((10.0, 250), (9.0, 200), (8.9, 25), (8.6, 20), (8.0, 120), (7.5, 20), (7.0, 50), (0.0, 8))
# Pinned host memory to GPU, bytes per second: PCIe 5.0 ×16, 4.0 ×16 in servers, 4.0 ×8 or 3.0 ×16 elsewhere.
CUDA_PINNED = ((12.0, 25), (9.0, 45), (8.1, 12), (8.0, 22), (0.0, 11))
LAUNCH_SECONDS = 45e-6  # per layer: published 18.3 ms for the 391 layers of an SD1.5 step on an H100, eager
REPLAY_SECONDS = 4e-6  # assumed, the same of a captured layer: two or three kernels, a microsecond or two between them
CAPTURES = 2.0  # assumed: capturing a graph takes as long as launching its layers, making it ready as long again
PAGEABLE = 2.0 * GIGA  # published offload costs give 1.3-1.7 GB/s with both directions counted, 3 GB/s for one
DISK = 1.0 * GIGA  # assumed: a cold read from a solid-state disk, converted on the way
CPU_CORE_FP32 = 0.107 * TERA  # measured: 1.607 TFLOP in 6.6-8.5 s on two Zen 5 cores with AVX-512
CPU_CORE_BF16 = 0.226 * TERA  # measured: the same in 3.3-3.8 s
CPU_CORE_NARROW = 0.05 * TERA  # assumed: half the vector width, AVX2 or NEON
MPS_RATE = 4.0 * TERA  # assumed: a laptop's Apple GPU in fp16
OTHER_RATE = 20 * TERA  # assumed: an AMD or Intel GPU of the middle class in half precision
OTHER_PINNED = 11 * GIGA  # assumed: PCIe 4.0 ×8 or 3.0 ×16, as for an NVIDIA GPU of unknown make


class Rates(NamedTuple):
    """Operations and bytes per second; seconds per layer that is launched, or replayed as part of a graph."""

    compute: float  # in the device's fastest dtype
    host: float  # the host's CPU in fp32
    pinned: float
    pageable: float = PAGEABLE
    disk: float = DISK
    launch: float = 0.0
    replay: float = 0.0


def rates(hardware: Hardware) -> Rates:
    wide = "avx512" in hardware.isa or "amx" in hardware.isa
    host = max(1, hardware.threads) * (CPU_CORE_FP32 if wide else CPU_CORE_NARROW)
    if hardware.backend == "cuda":
        level = capability(hardware)
        return Rates(
            compute=_of(CUDA_RATE, level) * TERA,
            host=host,
            pinned=_of(CUDA_PINNED, level) * GIGA,
            launch=LAUNCH_SECONDS,
            replay=REPLAY_SECONDS,
        )
    if hardware.backend in ("rocm", "xpu"):
        return Rates(compute=OTHER_RATE, host=host, pinned=OTHER_PINNED, launch=LAUNCH_SECONDS)
    if hardware.kind == "mps":
        return Rates(compute=MPS_RATE, host=host, pinned=PAGEABLE)
    fastest = max(1, hardware.threads) * CPU_CORE_BF16 if native_bf16(hardware) else host
    return Rates(compute=fastest, host=host, pinned=PAGEABLE)


def _of(table: tuple[tuple[float, int], ...], level: float) -> int:
    return next(value for least, value in table if level >= least)
