"""Bytes a setup needs on the device and on the host, phase by phase; counted from configs, never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdcli.machine.hardware import Hardware
from sdcli.models import text, unet, vae
from sdcli.models.model import Model
from sdcli.plan import calibration
from sdcli.plan.plan import Footprint, Phase, Setup
from sdcli.plan.techniques import vae as vae_tiles
from sdcli.plan.techniques.attention import BLOCK
from sdcli.plan.techniques.dtype import BYTES
from sdcli.plan.techniques.vae_dtype import effective

TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one UNet call and one decode work on. `batch` counts pictures; guidance's second half comes on top."""

    width: int
    height: int
    batch: int = 1
    guided: bool = True
    tokens: int = TOKENS


@dataclass(frozen=True)
class Weights:
    """Bytes per component as this setup holds them."""

    encoders: int
    largest_encoder: int
    unet: int
    vae: int  # 0 where the VAE is on the CPU of a machine with a card
    vae_on_host: int

    @property
    def all(self) -> int:
        return self.encoders + self.unet + self.vae


class Sizes:
    """The footprints of one model at one shape on one device. Parts are kept, so that a product of setups is cheap."""

    def __init__(
        self, model: Model, shape: Shape, hardware: Hardware, imports_bytes: int = calibration.IMPORTS
    ) -> None:
        self.model = model
        self.shape = shape
        self.kind = hardware.kind
        self.imports = imports_bytes + (calibration.CUDA_LIBRARIES if self.kind == "cuda" else 0)
        self.encoders = tuple(name for name in model.components if name.startswith("text_encoder"))
        self.scale = vae.scale(self.config("vae"))
        self.picture = shape.width * shape.height * calibration.PICTURE_BYTES_PER_PIXEL
        self._unet_call: dict[int, unet.Unet] = {}
        self._parts: dict[tuple[object, ...], tuple[Phase, ...]] = {}
        self._work: dict[tuple[object, ...], int] = {}
        self.largest_layer = self.call(1).largest_leaf  # parameters

    # what the configs say

    def config(self, component: str) -> Mapping[str, object]:
        return self.model.components[component].config

    def call(self, batch: int) -> unet.Unet:
        """One UNet call on `batch` latents."""
        if batch not in self._unet_call:
            self._unet_call[batch] = unet.analyse(
                self.config("unet"),
                height=self.shape.height // self.scale,
                width=self.shape.width // self.scale,
                batch=batch,
                tokens=self.shape.tokens,
            )
        return self._unet_call[batch]

    def weights(self, component: str, dtype: str) -> int:
        return self.model.components[component].parameters * BYTES[dtype]

    def largest_tensor(self, dtype_bytes: int) -> int:
        """The largest tensor a loader holds beside what is in place already."""
        largest = self.largest_layer
        for name in self.encoders:
            config = self.config(name)
            vocabulary, width = config.get("vocab_size"), config.get("hidden_size")
            if isinstance(vocabulary, int) and isinstance(width, int):
                largest = max(largest, vocabulary * width)
        return largest * dtype_bytes

    # work: activations and workspace

    def encode_work(self, setup: Setup) -> int:
        key = ("encode", setup.dtype)
        if key not in self._work:
            live = max((self._encoder_live(name, BYTES[setup.dtype]) for name in self.encoders), default=0)
            self._work[key] = self._reserved(live)
        return self._work[key]

    def _encoder_live(self, name: str, dtype_bytes: int) -> int:
        return self.encoder(name).activation_peak(dtype_bytes)

    def encoder(self, name: str) -> text.TextEncoder:
        """One chunk of a prompt through one text encoder."""
        config = self.config(name)
        longest = config.get("max_position_embeddings")
        return text.analyse(config, tokens=min(self.shape.tokens, longest if isinstance(longest, int) else TOKENS))

    def denoise_work(self, setup: Setup) -> int:
        key = ("denoise", setup.dtype, setup.storage, setup.attention, setup.guidance)
        if key not in self._work:
            self._work[key] = self._reserved(self._denoise_live(setup), heap=True)
        return self._work[key]

    def _denoise_live(self, setup: Setup) -> int:
        together = 2 if self.shape.guided and setup.guidance == "batched" else 1
        batch = self.shape.batch * together
        call, size = self.call(batch), BYTES[setup.dtype]
        live = call.activation_peak(size)
        scores = 0
        if setup.attention == "sliced":  # scores and their softmax for half the heads of one latent
            scores = 2 * (call.largest_scores // (2 * batch)) * size
        if setup.attention == "blocked":  # the same for a block of queries, all heads
            queries = max(BLOCK, call.latent[1] * call.latent[2])
            scores = 2 * (call.largest_scores * BLOCK // queries) * size
        live = max(live, live // 2 + scores)  # at the attention less than half lives of what the feed-forward needs
        if setup.storage == "fp8":  # the layer at work, widened
            live += self.largest_layer * size
        return live

    def decode_work(self, setup: Setup) -> int:
        """Decoding one picture; where the VAE is on the CPU, its work there."""
        dtype = effective(setup)
        key = ("decode", dtype, setup.vae)
        if key not in self._work:
            live = self._decode_live(setup.vae, BYTES[dtype])
            self._work[key] = live if setup.vae == "cpu" else self._reserved(live)
        return self._work[key]

    def _decode_live(self, how: str, dtype_bytes: int) -> int:
        return self.decoder(how).activation_peak(dtype_bytes)

    def decoder(self, how: str) -> vae.Pass:
        """Decoding one picture whole or in tiles."""
        config, height, width = self.config("vae"), self.shape.height, self.shape.width
        if how in vae_tiles.TILES:
            return vae.decode_tiled(config, height=height, width=width, tile=vae_tiles.TILES[how])
        return vae.decode(config, height=height, width=width)

    def split(self, how: str) -> bool:
        """Whether decoding so runs over more than one tile."""
        return max(self.shape.height, self.shape.width) > vae_tiles.TILES.get(how, 1 << 60)

    def _reserved(self, live: int, heap: bool = False) -> int:
        return int(live * calibration.rounding(self.kind, heap)) + calibration.workspace(self.kind)

    # weights and phases

    def weigh(self, setup: Setup) -> Weights:
        """Bytes per component as this setup holds them."""
        encoders = [self.weights(name, setup.dtype) for name in self.encoders]
        vae_bytes = self.weights("vae", effective(setup))
        apart = setup.vae == "cpu" and self.kind != "cpu"
        return Weights(
            encoders=sum(encoders),
            largest_encoder=max(encoders, default=0),
            unet=self.weights("unet", "fp8" if setup.storage == "fp8" else setup.dtype),
            vae=0 if apart else vae_bytes,
            vae_on_host=vae_bytes if apart else 0,
        )

    def phases(self, setup: Setup) -> tuple[Phase, ...]:
        key = (
            setup.dtype, setup.storage, setup.placement, setup.attention, setup.guidance, setup.vae, setup.vae_dtype,
        )  # fmt: skip
        if key not in self._parts:
            rows = _on_one_memory(self, setup) if self.kind in ("cpu", "mps") else _on_a_card(self, setup)
            self._parts[key] = rows
        return self._parts[key]

    def peaks(self, setup: Setup) -> tuple[int, int]:
        phases = self.phases(setup)
        return max(phase.device for phase in phases), max(phase.host for phase in phases)

    def footprint(self, setup: Setup) -> Footprint:
        phases = self.phases(setup)
        device, host = self.peaks(setup)
        return Footprint(device_peak=device, host_peak=host, phases=phases)


def footprint(
    model: Model, shape: Shape, setup: Setup, hardware: Hardware, imports_bytes: int = calibration.IMPORTS
) -> Footprint:
    """Predicted peaks of one setup: load, encode, denoise, decode."""
    return Sizes(model, shape, hardware, imports_bytes).footprint(setup)


def _stored(sizes: Sizes) -> int:
    """Bytes of the largest tensor as the file has it: what the loader converts from."""
    widest = max(BYTES.get(part.stored_dtype, 4) for part in sizes.model.components.values())
    return sizes.largest_tensor(widest)


def _on_a_card(sizes: Sizes, setup: Setup) -> tuple[Phase, ...]:
    """A device with its own memory: weights are here, parked here, or parked on the host."""
    have, placement = sizes.weigh(setup), setup.placement
    encode, denoise = sizes.encode_work(setup), sizes.denoise_work(setup)
    decode = sizes.decode_work(setup)
    staging = _stored(sizes)
    window = calibration.STREAMED_LAYERS * sizes.largest_layer * (1 if setup.storage == "fp8" else BYTES[setup.dtype])
    streamed = placement == "group-offload"
    kept = have.all if placement in ("model-offload", "group-offload") else 0  # parked on the host
    pinned = have.encoders + have.unet if streamed else 0
    still = 0 if placement == "disk" else have.vae_on_host  # a VAE that waits on the host
    base = sizes.imports + kept + still
    on_host = sizes.picture + (decode if setup.vae == "cpu" else 0) + (have.vae_on_host - still)
    used = {
        "resident": (have.encoders, have.unet, have.vae),
        "drop-encoders": (have.encoders, have.unet, have.vae),
        "group-offload": (min(have.largest_encoder, window), min(have.unet, window), have.vae),
    }.get(placement, (have.largest_encoder, have.unet, have.vae))
    parked = {
        "resident": (have.unet + have.vae, have.encoders + have.vae, have.encoders + have.unet),
        "drop-encoders": (0, have.vae, have.unet),
    }.get(placement, (0, 0, 0))
    loaded = {
        "resident": have.all,
        "drop-encoders": max(have.encoders, have.unet + have.vae),
        "disk": max(have.largest_encoder, have.unet, have.vae),
    }.get(placement, 0)
    decoding = 0 if setup.vae == "cpu" else decode
    return (
        Phase(name="load", device=loaded, host=base + staging, weights=loaded, pinned=pinned),
        _phase("encode", used[0], parked[0], encode, base, pinned),
        _phase("denoise", used[1], parked[1], denoise, base, pinned),
        _phase("decode", used[2], parked[2], decoding, base + on_host, pinned),
    )


def _phase(name: str, weights: int, parked: int, work: int, host: int, pinned: int) -> Phase:
    device = weights + parked + work
    return Phase(name=name, device=device, host=host, weights=weights, parked=parked, work=work, pinned=pinned)


def _on_one_memory(sizes: Sizes, setup: Setup) -> tuple[Phase, ...]:
    """A CPU, or a Mac whose GPU shares the host's memory: everything counts on the host, once."""
    have, placement = sizes.weigh(setup), setup.placement
    together = have.unet + have.vae
    held = {
        "resident": (have.all, have.all, have.all),
        "drop-encoders": (have.encoders, together, together),
    }.get(placement, (have.largest_encoder, have.unet, have.vae))
    used = (have.encoders if placement != "disk" else have.largest_encoder, have.unet, have.vae)
    work = (sizes.encode_work(setup), sizes.denoise_work(setup), sizes.decode_work(setup))
    aside = have.vae_on_host  # a Mac's VAE on the CPU: in the same memory, not on the device
    largest = max(held)
    rows = [_shared(sizes, "load", largest, largest, 0, aside + _stored(sizes))]
    for index, name in enumerate(("encode", "denoise", "decode")):
        extra = aside if placement != "disk" or name == "decode" else 0
        on_device = work[index]
        if name == "decode":
            extra += sizes.picture
            if aside:
                extra, on_device = extra + work[index], 0
        rows.append(_shared(sizes, name, held[index], min(used[index], held[index]), on_device, extra))
    return tuple(rows)


def _shared(sizes: Sizes, name: str, held: int, used: int, work: int, aside: int) -> Phase:
    host = sizes.imports + held + work + aside
    device = host if sizes.kind == "cpu" else held + work
    return Phase(name=name, device=device, host=host, weights=used, parked=held - used, work=work)
