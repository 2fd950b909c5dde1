"""The bytes a setup needs on the device and on the host, stage by stage; counted from configs, without loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from sdcli.machine.hardware import Hardware
from sdcli.models import text, unet, vae
from sdcli.models.model import BYTES, Model, net_kind, role
from sdcli.plan import calibration
from sdcli.plan.plan import Footprint, Phase, Setup
from sdcli.plan.stages import TOKENS, Shape, Stage, parts_of, stages_at
from sdcli.plan.techniques import placement
from sdcli.plan.techniques import vae as vae_tiles
from sdcli.plan.techniques.attention import blocks
from sdcli.plan.techniques.vae_dtype import effective

if TYPE_CHECKING:  # counted in a few plans only, and imported by those
    from sdcli.models import control_walk, reference_walk, upscaler_walk, vision

COMPILE = "compile"  # the phase

# The slots that each kind of work depends on.
_WORK = {
    "text": attrgetter("dtype"),
    "reference": attrgetter("dtype"),
    "unet": attrgetter("dtype", "storage", "attention", "guidance", "blocks", "threads", "execution"),
    "pixels": attrgetter("dtype", "vae", "vae_dtype", "execution"),
    "enlarge": attrgetter("dtype", "vae", "vae_dtype", "execution", "upscaler_tile"),
    "image": attrgetter("dtype", "vae", "vae_dtype", "execution"),
}


class Held(NamedTuple):
    """Bytes of weights while a stage works."""

    used: int  # on the device, by the stage
    resident: int  # on the device
    on_host: int  # and not on the device
    pinned: int  # page-locked on the host


class Sizes:
    """The footprints of one model's stages on one device. Counts are cached, so that a product of setups is cheap."""

    def __init__(self, model: Model, stages: Sequence[Stage], hardware: Hardware) -> None:
        self.model = model
        self.stages = tuple(stages)
        self.kind = hardware.kind
        self.backend = hardware.backend
        self.shared = hardware.shares_memory  # counted once
        self.imports = calibration.IMPORTS + calibration.libraries(self.backend)
        self.parts = parts_of(stages)
        self.scale = vae.scale(self.config("vae"))
        self.call, self.encoder, self.control = cache(self._call), cache(self._encoder), cache(self._control)
        self.decoder, self.image_encoder = cache(self._decoder), cache(self._image_encoder)
        self.upscaler = cache(self._upscaler)
        self._work: dict[tuple[object, ...], int] = {}
        self._held: dict[tuple[object, ...], Held] = {}
        self._phases: dict[tuple[object, ...], Phase] = {}
        self._largest_tensor = max(self._largest_tensors())

    # from the configs

    def config(self, component: str) -> Mapping[str, object]:
        return self.model.components[component].config

    def _call(self, shape: Shape, part: str) -> unet.Unet:
        """One call of a UNet on one latent; all it takes grows in proportion to their number."""
        height, width = shape.height // self.scale, shape.width // self.scale
        return unet.analyse(self.config(part), height=height, width=width, tokens=shape.tokens)

    def _control(self, shape: Shape, part: str) -> control_walk.ControlWork:
        """One call of a ControlNet on one latent."""
        from sdcli.models import control_walk

        height, width = shape.height // self.scale, shape.width // self.scale
        return control_walk.analyse(self.config(part), height=height, width=width, tokens=shape.tokens)

    def _encoder(self, shape: Shape, name: str) -> text.TextEncoder:
        """One chunk of a prompt through one text encoder."""
        config = self.config(name)
        longest = config.get("max_position_embeddings")
        return text.analyse(config, tokens=min(shape.tokens, longest if isinstance(longest, int) else TOKENS))

    def image_reader(self) -> vision.ImageEncoder:
        """One image through the encoder; all states on the way are kept where more than a vector is looked at."""
        from sdcli.models import reference_walk, vision

        rows = self.config("ip_adapter")["kind"] != reference_walk.PLAIN
        return vision.analyse(self.config("image_encoder"), states=rows)

    def referring(self, stage: Stage) -> reference_walk.AdapterWork:
        """The IP-Adapter's call for as many images as there are at once."""
        from sdcli.models import reference_walk

        images = max(1, stage.references)
        return reference_walk.analyse(self.config("ip_adapter"), images=images, guided=stage.shape.sides > 1)

    def _decoder(self, shape: Shape, how: str) -> vae.Pass:
        """Decoding one image whole or in tiles."""
        config, height, width = self.config("vae"), shape.height, shape.width
        if how in vae_tiles.TILES:
            return vae.decode_tiled(config, height=height, width=width, tile=vae_tiles.TILES[how])
        return vae.decode(config, height=height, width=width)

    def _image_encoder(self, shape: Shape, how: str) -> vae.Pass:
        """Encoding one image, in tiles where decoding is."""
        config, height, width = self.config("vae"), shape.height, shape.width
        if how in vae_tiles.TILES:
            return vae.encode_tiled(config, height=height, width=width, tile=vae_tiles.TILES[how])
        return vae.encode(config, height=height, width=width)

    def _upscaler(self, stage: Stage, part: str, tile: int) -> upscaler_walk.Enlarged:
        """Enlarging one image until it is as large as the stage makes it."""
        from sdcli.models import upscaler_walk

        assert stage.smaller is not None
        config, small, large = self.config(part), stage.smaller, (stage.shape.width, stage.shape.height)
        times = upscaler_walk.times(config, small.width, small.height, large)
        return upscaler_walk.enlarged(config, small.width, small.height, times=times, tile=tile)

    def weights(self, part: str, setup: Setup) -> int:
        """Bytes of a component's weights under this setup."""
        return self.model.components[part].parameters * BYTES[_stored(part, setup)]

    def on_host(self, part: str, setup: Setup) -> bool:
        """Whether it stays and computes on the host although the setup's device is a GPU."""
        return part == "vae" and setup.vae == "cpu" and self.kind != "cpu"

    # work: activations and workspace

    def work(self, stage: Stage, setup: Setup) -> int:
        """Bytes while this stage computes: on the device, or on the host if its part is there."""
        key = (stage.name, stage.parts, _WORK[stage.work](setup))
        if key not in self._work:
            count = {
                "text": self._text, "reference": self._reference, "pixels": self._pixels, "unet": self._unet,
                "enlarge": self._enlarge, "image": self._image,
            }[stage.work]  # fmt: skip
            self._work[key] = count(stage, setup)
        return self._work[key]

    def _text(self, stage: Stage, setup: Setup) -> int:
        size = BYTES[setup.dtype]
        return self._reserved(
            max((self.encoder(stage.shape, part).activation_peak(size) for part in stage.parts), default=0)
        )

    def _reference(self, stage: Stage, setup: Setup) -> int:
        size = BYTES[setup.dtype]
        works = self.image_reader(), self.referring(stage)
        return self._reserved(max(work.activation_peak(size) for work in works))

    def _unet(self, stage: Stage, setup: Setup) -> int:
        latents = self._latents(stage, setup)
        call, size = self.call(stage.shape, stage.parts[0]), BYTES[setup.dtype]
        live = call.activation_peak(latents * size)
        if setup.execution == "openvino":
            return self._compiled(stage.parts[0], live, setup)
        widened = call.beside_weights(latents * size, layer=size) - live if setup.storage == "fp8" else 0
        scores = 0
        if setup.attention == "sliced":  # scores and their softmax for half the heads of one latent
            scores = 2 * (call.largest_scores // 2) * size
        if setup.attention == "blocked":  # the same for a block of queries
            scores = 2 * _scores_at_once(call, latents, setup) * size
        live = max(live, live // 2 + scores)  # at the attention, less than half of the feed-forward's peak is live
        if setup.execution == "graph":
            held, more = self._beside_graph(stage, latents, size)
            return self._reserved(held + more + self._attended(stage, setup)) + self._pool(live)
        live = self._steered(live, stage, latents, size) + self._attended(stage, setup)
        return self._reserved(live + widened, heap=True)

    def _steered(self, live: int, stage: Stage, rows: int, size: int) -> int:
        """With ControlNets: their embedded images stay, and their results, summed, through the UNet's call. A net's own
        call comes before. What T2I-Adapters find stays too."""
        if not stage.beside:
            return live
        added, _, calls = self._added(stage, rows)
        return max(size * added + live, size * calls) + size * self._looked_at(stage, rows)

    def _beside_graph(self, stage: Stage, rows: int, size: int) -> tuple[int, int]:
        """Bytes beside a captured UNet: its own copies of what nets add to it, and what is there while they compute."""
        if not stage.beside:
            return 0, 0
        added, maps, calls = self._added(stage, rows)
        return size * (added + maps), size * (max(added, calls) + self._looked_at(stage, rows))

    def _added(self, stage: Stage, rows: int) -> tuple[int, int, int]:
        """Elements of what ControlNets add to a UNet, of what T2I-Adapters do, and the most while one of them
        computes, beside what those before it gave."""
        nets = {part: self.control(stage.shape, part) for part in stage.beside}
        added = rows * max(net.residual_elements for net in nets.values())
        maps = rows * max(net.hint.elements if net.call is None else 0 for net in nets.values())
        before = added if len([part for part in stage.called if nets[part].call is not None]) > 1 else 0
        return added, maps, before + max(self._working(stage, part, net, rows) for part, net in nets.items())

    def _working(self, stage: Stage, part: str, net: control_walk.ControlWork, rows: int) -> int:
        """Elements while a net computes: a T2I-Adapter with one image; a ControlNet Union with several of them, each
        times its weight."""
        if net.call is None:
            return net.hint.peak_elements
        images = sum(each.part == part for each in stage.shown)
        weighed = images if images > 1 and net_kind(part) == "controlnet_union" else 0
        return rows * (net.call.activation_peak(1) + weighed * net.hint.elements)

    def _looked_at(self, stage: Stage, rows: int) -> int:
        """Elements that come of the images that steer. Of T2I-Adapters: the maps of each, their sum, and those in rows
        where the images of a batch have their own."""
        elements, maps = 0, list[int]()
        for each in stage.shown:
            net = self.control(stage.shape, each.part)
            if net.call is not None:
                elements += net.hint.elements * rows
            else:
                maps.append(net.hint.elements * each.images)
                elements += net.hint.elements * (rows if each.images > 1 and len(maps) == 1 else 0)
        return elements + sum(maps) + (max(maps) if len(maps) > 1 else 0)

    def _attended(self, stage: Stage, setup: Setup) -> int:
        """The keys and values of reference images for all rows; where a call has fewer, or a graph reads its own, those
        too."""
        if not stage.references:
            return 0
        twice = setup.execution == "graph" or (stage.shape.sides > 1 and setup.guidance == "in-turn")
        return stage.shape.batch * self.referring(stage).kept_elements * BYTES[setup.dtype] * (2 if twice else 1)

    def _pool(self, live: int) -> int:
        """What a graph keeps for itself: its memory, in which a call's live bytes are laid out once and for all, and
        the workspace of the stream that it was captured in."""
        return int(live * calibration.CUDA_GRAPH) + calibration.workspace(self.backend)

    def _pixels(self, stage: Stage, setup: Setup) -> int:
        size = BYTES[effective(setup)]
        given = 3 * stage.shape.width * stage.shape.height * size
        live = self.image_encoder(stage.shape, setup.vae).activation_peak(size) + given
        if setup.execution == "openvino":  # by diffusers' own VAE, which is loaded for it
            return self._reserved(live) + self.weights("vae", setup)
        return live if setup.vae == "cpu" else self._reserved(live)

    def _enlarge(self, stage: Stage, setup: Setup) -> int:
        """What was drawn is decoded, and encoded again at the larger size; between them a model may be at work."""
        assert stage.smaller is not None
        if stage.parts[0] != "vae":
            work = self.upscaler(stage, stage.parts[0], setup.upscaler_tile)
            return self._reserved(upscaling(work, BYTES[setup.dtype], self.kind))
        return max(self._image(replace(stage, shape=stage.smaller), setup), self._pixels(stage, setup))

    def _image(self, stage: Stage, setup: Setup) -> int:
        live = self.decoder(stage.shape, setup.vae).activation_peak(BYTES[effective(setup)])
        if setup.execution == "openvino":
            shapes = vae_tiles.SHAPES if setup.vae in vae_tiles.TILES else 1
            return self._compiled("vae", live, setup) + (shapes - 1) * self.weights("vae", setup)
        return live if setup.vae == "cpu" else self._reserved(live)

    def _compiled(self, part: str, live: int, setup: Setup) -> int:
        """By OpenVINO: while it packs the weights, the graph's are there too; then its calls take their place."""
        return max(self.weights(part, setup), self._reserved(live)) + calibration.OPENVINO

    def _reserved(self, live: int, heap: bool = False) -> int:
        return int(live * calibration.rounding(self.backend, heap)) + calibration.workspace(self.backend)

    # phases: loading, then the stages

    def phases(self, setup: Setup) -> tuple[Phase, ...]:
        weights = (*_weights(setup), setup.execution)
        graph = self._graph(setup)
        rows = [
            self._once((name, _WORK[stage.work](setup), weights, graph), self._phase, name, stage, setup)
            for stage in self.stages
            for name in _phases_of(stage, setup)
        ]
        most = max([row.weights + row.parked for row in rows]) - graph
        return self._once(("load", most, weights), self._load, most, setup), *rows

    def _once(self, key: tuple[object, ...], count: Callable[..., Phase], *about: object) -> Phase:
        if key not in self._phases:
            self._phases[key] = count(*about)
        return self._phases[key]

    def peaks(self, setup: Setup) -> tuple[int, int]:
        phases = self.phases(setup)
        return max([phase.device for phase in phases]), max([phase.host for phase in phases])

    def footprint(self, setup: Setup) -> Footprint:
        phases = self.phases(setup)
        device, host = self.peaks(setup)
        return Footprint(device_peak=device, host_peak=host, phases=phases)

    def _phase(self, name: str, stage: Stage, setup: Setup) -> Phase:
        """Weights in use, weights parked, and work."""
        if stage.work == "enlarge" and len(stage.parts) > 1:  # each part does work of its own
            alone = [self._phase(name, replace(stage, parts=(part,)), setup) for part in dict.fromkeys(stage.parts)]
            host = max(phase.host for phase in alone)
            return replace(max(alone, key=attrgetter("device")), host=host)
        held, work = self._weights_held(stage, setup), self.work(stage, setup)
        resident = held.resident
        if setup.execution == "graph" and stage.work != "unet" and "unet" in self._loaded(stage, setup):
            resident += self._graph(setup)
        on_host = any(self.on_host(part, setup) for part in stage.parts)
        aside = held.on_host + (work if on_host else 0)
        if stage.work in ("pixels", "enlarge", "image"):
            aside += stage.shape.width * stage.shape.height * calibration.IMAGE_BYTES_PER_PIXEL
        if stage.work == "enlarge" and stage.parts[0] != "vae":
            made = self.upscaler(stage, stage.parts[0], setup.upscaler_tile)
            aside += made.width * made.height * calibration.UPSCALED_BYTES_PER_PIXEL
        aside += stage.file_pixels * calibration.FILE_BYTES_PER_PIXEL
        if setup.execution == "compile":
            aside += calibration.COMPILER + (calibration.COMPILING if name == COMPILE else 0)
        return self._row(name, held._replace(resident=resident), 0 if on_host else work, aside)

    def _graph(self, setup: Setup) -> int:
        """Bytes that a captured UNet keeps while it does not compute."""
        if setup.execution != "graph":
            return 0
        return max(self._kept(stage, setup) for stage in self.stages if stage.work == "unet")

    def _kept(self, stage: Stage, setup: Setup) -> int:
        rows, size = self._latents(stage, setup), BYTES[setup.dtype]
        held, more = self._beside_graph(stage, rows, size)
        return self.work(stage, setup) - self._reserved(held + more) + int(held * calibration.rounding(self.backend))

    def _loaded(self, stage: Stage, setup: Setup) -> set[str]:
        return {name for part in stage.parts for name in placement.loaded(setup.placement, self.stages, stage, part)}

    def _weights_held(self, stage: Stage, setup: Setup) -> Held:
        key = (stage.name, stage.parts, _weights(setup))
        if key not in self._held:
            used, there = self._weights_at_work(stage, setup)
            self._held[key] = Held(used, there, self._on_the_host(stage, setup), self._pinned(setup))
        return self._held[key]

    def _weights_at_work(self, stage: Stage, setup: Setup) -> tuple[int, int]:
        """Bytes on the device in use, and all that are there meanwhile: the most of any of the stage's parts."""
        used = there = 0
        at_once = setup.placement not in (*placement.ONE_AT_A_TIME, *placement.PARKED_ON_HOST)
        for part in stage.parts:
            in_use = (*(stage.parts if at_once else (part,)), *stage.beside)
            loaded = placement.loaded(setup.placement, self.stages, stage, part) if at_once else in_use
            used = max(used, self._on_the_device(in_use, stage, setup))
            there = max(there, self._on_the_device(loaded, stage, setup))
        return used, there

    def _on_the_device(self, parts: Sequence[str], stage: Stage, setup: Setup) -> int:
        return sum(self._in_blocks(part, stage, setup) for part in parts if not self.on_host(part, setup))

    def _in_blocks(self, part: str, stage: Stage, setup: Setup) -> int:
        streamed = placement.streamed(setup.placement, part)
        size = self._window(part, stage, setup) if streamed else self.weights(part, setup)
        return int(size * calibration.blocks(self.backend, _stored(part, setup)))

    def _window(self, part: str, stage: Stage, setup: Setup) -> int:
        """Bytes that a part's streamed layers add to its work at the worst moment."""
        size = BYTES[setup.dtype]
        if stage.work == "text":
            encoder = self.encoder(stage.shape, part)
            return encoder.beside_weights(size, row=size) - encoder.activation_peak(size)
        if stage.work == "reference":
            return self._window_of_reference(part, stage, size)
        net = part in stage.beside
        call = self.control(stage.shape, part).call if net else self.call(stage.shape, part)
        if call is None:  # its work is over before the UNet's begins
            return 0
        live = self._latents(stage, setup) * size
        row, layer = (1, size) if _stored(part, setup) == "fp8" else (size, 0)
        return call.beside_weights(live, layer=layer, row=row) - call.beside_weights(live, layer=layer)

    def _window_of_reference(self, part: str, stage: Stage, size: int) -> int:
        """Beside the work of both parts. The order of layers is learnt in a first call, so that with a single one none
        is fetched ahead."""
        from sdcli.models import reference_walk

        reader, adapter = self.image_reader(), self.referring(stage)
        rows = self.config("ip_adapter")["kind"] != reference_walk.PLAIN  # nothing is encoded too
        calls = stage.references + (1 if rows and stage.shape.sides > 1 else 0)
        work, again = (reader, calls > 1) if part == "image_encoder" else (adapter, False)
        window = work.beside_weights(size, row=size) if again else work.beside_weights(size, layer=size)
        return max(0, window - max(reader.activation_peak(size), adapter.activation_peak(size)))

    def _latents(self, stage: Stage, setup: Setup) -> int:
        """In one UNet call."""
        return stage.shape.batch * (stage.shape.sides if setup.guidance == "batched" else 1)

    def _on_the_host(self, stage: Stage | None, setup: Setup) -> int:
        """Weights on the host and not on the device: parked, or of a part that computes there."""
        parked = setup.placement in placement.PARKED_ON_HOST and not self.shared
        size = sum(self.weights(part, setup) for part in self.parts if parked and not self.on_host(part, setup))
        for part in self.parts:
            loaded = setup.placement != "disk" or (stage is not None and part in stage.parts)
            if self.on_host(part, setup) and loaded:
                size += self.weights(part, setup)
        return size

    def _load(self, most: int, setup: Setup) -> Phase:
        """The most weights at once, and the tensor the loader is converting, in the file's dtype."""
        parked = setup.placement in placement.PARKED_ON_HOST and not self.shared
        resident = 0 if parked else most
        widest = max(BYTES.get(part.stored_dtype, 4) for part in self.model.components.values())
        on_host = self._on_the_host(None, setup)
        aside = on_host + self._largest_tensor * widest
        if setup.execution == "openvino":  # converted, where it was not before
            aside += calibration.OPENVINO_TRACING
        return self._row("load", Held(resident, resident, on_host, self._pinned(setup)), 0, aside)

    def _largest_tensors(self) -> Iterator[int]:
        """Parameters of each part's largest tensor: a loader holds it beside the weights already loaded."""
        for stage in self.stages:
            if stage.work == "unet":
                yield self.call(stage.shape, stage.parts[0]).largest_leaf
        for part in self.parts:
            vocabulary, width = self.config(part).get("vocab_size"), self.config(part).get("hidden_size")
            if isinstance(vocabulary, int) and isinstance(width, int):
                yield vocabulary * width

    def _pinned(self, setup: Setup) -> int:
        """Bytes of the weights that wait on the host to be streamed."""
        if self.shared:
            return 0
        return sum(self.weights(part, setup) for part in self.parts if placement.streamed(setup.placement, part))

    def _row(self, name: str, held: Held, work: int, aside: int) -> Phase:
        """`aside`: bytes only on the host, those of weights among them."""
        device, host = held.resident + work, self.imports + aside
        if self.shared:
            host += device
        return Phase(
            name=name, device=host if self.kind == "cpu" else device, host=host, weights=held.used,
            parked=held.resident - held.used, work=work, pinned=held.pinned,
        )  # fmt: skip


def upscaling(work: upscaler_walk.Enlarged, size: int, kind: str) -> int:
    """Live bytes of a tile, `size` those of a number. On a CPU its pixels are fp32 there too, before and after."""
    given, made = work.given_elements * size, work.largest.peak_elements * size
    if kind == "cpu":
        given += work.given_elements * BYTES["fp32"]
        made = max(made, work.largest.result_elements * (size + BYTES["fp32"] + 1))
    return given + made


def _phases_of(stage: Stage, setup: Setup) -> tuple[str, ...]:
    """Blocks are compiled by a call of the UNet before the first step."""
    compiled = setup.execution == "compile" and stage.work == "unet"
    return (COMPILE, stage.name) if compiled else (stage.name,)


def _weights(setup: Setup) -> tuple[object, ...]:
    """What the weights depend on: their number types, and where they are."""
    return setup.dtype, setup.storage, effective(setup), setup.placement, setup.vae == "cpu"


def _stored(part: str, setup: Setup) -> str:
    """The number type of a part's weights."""
    if role(part) == "unet" and setup.storage == "fp8":
        return "fp8"
    return effective(setup) if part == "vae" else setup.dtype


def _scores_at_once(call: unet.Unet, latents: int, setup: Setup) -> int:
    """Elements of the largest block of an attention matrix, where attention runs in blocks."""
    most = 0
    for leaf in call.leaves:
        if leaf.kind == "attention":
            _, heads, queries, _ = leaf.output_shape
            block = blocks(latents * heads, leaf.keys, setup.threads, setup.blocks)
            if block is not None:
                most = max(most, block.rows * min(block.queries, queries) * leaf.keys)
    return most


def footprint(model: Model, shape: Shape, setup: Setup, hardware: Hardware) -> Footprint:
    """Predicted peaks of one setup: loading, then each stage."""
    return Sizes(model, stages_at(model, shape), hardware).footprint(setup)
