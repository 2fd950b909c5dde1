"""dtype: the number format that weights and activations are stored and computed in."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique

# Time relative to the device's fastest dtype.
CPU_FP32 = 2.2  # measured, 2-core Zen 5, SD1.5 512²: 6.6-8.5 s a step against 3.3-3.8 s in bf16
CPU_BF16_AVX512 = 3.0  # assumed: products are emulated from fp32 where the CPU has AVX-512 without bf16
CPU_BF16_EMULATED = 50.0  # published: 44-500 times as long as fp32 on AVX2 (pytorch#146508)
CUDA_FP32 = 3.0  # spec sheets: 2.5-4 between tensor cores in fp16 and fp32, TF32 off
CUDA_FP32_BEFORE_TENSOR_CORES = 1.1  # Pascal and older compute fp16 in fp32 units; only traffic is saved
MPS_FP32 = 1.5  # assumed: twice the traffic, the same units
OTHER_FP32 = 2.0  # assumed: AMD's and Intel's matrix units take half precision only


def capability(hardware: Hardware) -> float:
    """8.6 from "8.6"; an unknown GPU counts as a recent one."""
    try:
        return float(hardware.capability or "8.6")
    except ValueError:
        return 8.6


def native_bf16(hardware: Hardware) -> bool:
    """Whether bf16 runs at full rate: as probed, else by capability or instruction set."""
    status = hardware.dtypes.get("bf16")
    if status == "unavailable":
        return False
    if status == "probed":
        return True
    if hardware.backend == "cuda":
        return capability(hardware) >= 8.0
    if hardware.kind == "cpu":
        return "bf16" in hardware.isa or "amx" in hardware.isa
    return status == "assumed"


def slowdown(choice: str, hardware: Hardware) -> float:
    """Time of the UNet relative to the device's fastest dtype."""
    if hardware.kind == "cpu":
        if native_bf16(hardware):
            return CPU_FP32 if choice == "fp32" else 1.0
        emulated = CPU_BF16_AVX512 if "avx512" in hardware.isa else CPU_BF16_EMULATED
        return 1.0 if choice == "fp32" else emulated
    if choice != "fp32":
        return 1.0
    if hardware.backend != "cuda":
        return MPS_FP32 if hardware.kind == "mps" else OTHER_FP32
    return CUDA_FP32 if capability(hardware) >= 7.0 else CUDA_FP32_BEFORE_TENSOR_CORES


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    choice = setup.dtype
    if choice == "fp16" and hardware.kind == "cpu":
        return "fp16 convolutions are hundreds of times slower than fp32 on a CPU"
    if choice == "bf16" and hardware.backend == "cuda" and capability(hardware) < 8.0:
        return f"bf16 needs compute capability 8.0, this GPU has {hardware.capability}"
    if choice == "bf16" and hardware.kind == "mps" and not native_bf16(hardware):
        return "bf16 is not known to work on this Mac"
    if hardware.dtypes.get(choice) == "unavailable":
        if choice == "bf16" and hardware.kind == "cpu":
            return "bf16 is slow or wrong on this CPU"
        return f"{choice} is slow or wrong on this device"
    return None


def because(setup: Setup, situation: Situation) -> str:
    hardware, choice = situation.hardware, setup.dtype
    if hardware.kind == "cpu":
        if choice == "bf16" and native_bf16(hardware):
            units = hardware.isa or "bf16 units"
            return f"bf16: this CPU has {units}, about {CPU_FP32:g} times the speed of fp32, half the memory"
        if choice == "bf16":
            return "bf16: half the memory of fp32, but slow: this CPU emulates it"
        if native_bf16(hardware):
            return "fp32: exact, but slower than this CPU's bf16 and twice the memory"
        return "fp32: this CPU has no bf16 units, and fp16 is never used on a CPU"
    if choice == "fp32":
        return "fp32: exact, but slower than half precision and twice the memory"
    if hardware.backend != "cuda":
        return f"{choice}: half the memory of fp32, and faster"
    if capability(hardware) < 7.0:
        return f"{choice}: half the memory of fp32; this GPU computes both at about the same rate"
    return f"{choice}: this GPU's full rate, half the memory of fp32"


TECHNIQUE = Technique(
    slot="dtype",
    choices=("fp16", "bf16", "fp32"),
    without="fp32",
    illegal=illegal,
    because=because,
    phrases={"fp16": "fp16", "bf16": "bf16", "fp32": "fp32"},
)
