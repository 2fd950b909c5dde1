"""ComfyUI's prompt graph, `{id: {class_type, inputs}}`: followed from what was saved back to what it was drawn from.

It is data: nodes are looked at, none is run, and those that are not known are shown by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdcli.errors import BadFile
from sdcli.record.metadata.foreign import Taken, parse, whole
from sdcli.request.request import LARGEST_SEED

MOST_NODES = 5_000
MOST_STEPS = 200  # along one chain of links
_SAVES = ("SaveImage", "SaveImageWebsocket", "SaveAnimatedWEBP", "SaveAnimatedPNG", "PreviewImage")
_SAMPLERS = ("KSampler", "KSamplerAdvanced")
_LOADERS = ("CheckpointLoaderSimple", "CheckpointLoader", "ImageOnlyCheckpointLoader")
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")
_ENCODERS = ("CLIPTextEncode", "CLIPTextEncodeSDXL")
_DECODERS = ("VAEDecode", "VAEDecodeTiled")
_READ = {*_SAVES, *_SAMPLERS, *_LOADERS, *_LORAS, *_LATENTS, *_ENCODERS, *_DECODERS, "CLIPSetLastLayer"}

Node = Mapping[str, Any]


def values(text: str, where: str, hint: str) -> tuple[dict[str, Any], dict[str, str]]:
    graph = _Graph(parse(text, where, hint), where, hint)
    sampler = graph.sampler()
    inputs, taken = sampler["inputs"], Taken()
    taken.prompts(graph.prompt(inputs.get("positive")), graph.prompt(inputs.get("negative")) or "")
    taken.seed(_drawn_with(graph.value(inputs.get("noise_seed" if "noise_seed" in inputs else "seed"))))
    taken.steps(graph.value(inputs.get("steps")))
    taken.guidance(graph.value(inputs.get("cfg")))
    taken.sampler(graph.value(inputs.get("sampler_name")), graph.value(inputs.get("scheduler")))
    taken.values["emphasis"] = "comfy"
    _latent(graph, inputs, taken)
    _model(graph, inputs, taken)
    _left(inputs, taken)
    others = {node["class_type"] for node in graph.nodes.values()} - _READ
    taken.leave("nodes", ", ".join(sorted(name[:60] for name in others)))
    return taken.values, taken.unknown


def _drawn_with(seed: Any) -> Any:
    """ComfyUI's seeds have 64 bits, and its noise is drawn by torch on the CPU, which looks at the last 32 alone."""
    return seed if (number := whole(seed, 0, 2**64 - 1)) is None else number & LARGEST_SEED


def _latent(graph: _Graph, inputs: Node, taken: Taken) -> None:
    for node in graph.chain(inputs.get("latent_image"), ("samples", "latent_image", "latent")):
        if node["class_type"] in _LATENTS:
            own = node["inputs"]
            taken.size(graph.value(own.get("width")), graph.value(own.get("height")))
            return


def _model(graph: _Graph, inputs: Node, taken: Taken) -> None:
    loras = []
    for node in graph.chain(inputs.get("model"), ("model",)):
        own = node["inputs"]
        if node["class_type"] in _LORAS:
            loras.append(own)
        elif node["class_type"] in _LOADERS:
            taken.model(graph.value(own.get("ckpt_name")))
    for own in reversed(loras):  # as they are applied
        name, weight = graph.value(own.get("lora_name")), graph.value(own.get("strength_model"))
        taken.lora(name, weight)
        on_text = graph.value(own.get("strength_clip", weight))
        if on_text != weight:
            taken.leave(f"strength_clip {len(taken.values.get('lora', ()))}", on_text)
    for node in graph.chain(graph.text_node(inputs.get("positive")).get("clip"), ("clip",)):
        if node["class_type"] == "CLIPSetLastLayer":
            last = graph.value(node["inputs"].get("stop_at_clip_layer"))
            count = whole(last, -12, -1)
            taken.take("clip_skip", None if count is None else -count, "stop_at_clip_layer", last)
            return


def _left(inputs: Node, taken: Taken) -> None:
    """What a sampler does beside, unless it is as usual."""
    usual = {
        "denoise": 1, "add_noise": "enable", "start_at_step": 0, "return_with_leftover_noise": "disable",
    }  # fmt: skip
    for key, value in usual.items():
        if inputs.get(key, value) != value:
            taken.leave(key, inputs[key])
    end, steps = inputs.get("end_at_step"), taken.values.get("steps")
    if isinstance(end, int) and steps is not None and end < steps:
        taken.leave("end_at_step", end)


class _Graph:
    """Links are `[id, output]`; each chain is bounded and visits no node twice."""

    def __init__(self, raw: dict[str, Any], where: str, hint: str) -> None:
        self.where, self.hint = where, hint
        if len(raw) > MOST_NODES:
            raise BadFile(f"{where} has {len(raw):,} nodes, more than sdcli reads", hint=hint)
        self.nodes: dict[str, Node] = {id: node for id, node in raw.items() if _is_node(node)}
        if not self.nodes:
            raise BadFile(f"{where} has no nodes", hint=hint)

    def sampler(self) -> Node:
        """The last one before the first image that was saved; else the only one there is."""
        for kind in _SAVES:
            for node in self.nodes.values():
                if node["class_type"] == kind:
                    chain = self.chain(node["inputs"].get("images"), ("samples", "images", "image", "pixels"))
                    found = next((one for one in chain if one["class_type"] in _SAMPLERS), None)
                    if found is not None:
                        return found
        every = [node for node in self.nodes.values() if node["class_type"] in _SAMPLERS]
        if len(every) != 1:
            raise BadFile(f"{self.where} has no sampler that sdcli knows", hint=self.hint)
        return every[0]

    def chain(self, link: Any, inputs: tuple[str, ...]) -> Iterator[Node]:
        """The nodes that one leads to, back through the first of these inputs that is a link."""
        seen: set[str] = set()
        while (id := _target(link)) is not None and id in self.nodes and id not in seen and len(seen) < MOST_STEPS:
            seen.add(id)
            node = self.nodes[id]
            yield node
            link = next(
                (node["inputs"][name] for name in inputs if _target(node["inputs"].get(name)) is not None), None
            )

    def text_node(self, link: Any) -> Node:
        """The inputs of the encoder behind this conditioning; empty where there is none."""
        names = ("conditioning", "positive", "conditioning_1", "conditioning_to")
        for node in self.chain(link, names):
            if node["class_type"] in _ENCODERS:
                return dict(node["inputs"])
        return {}

    def prompt(self, link: Any) -> Any:
        own = self.text_node(link)
        texts = [self.value(own[name]) for name in ("text", "text_g", "text_l") if name in own]
        return next((text for text in texts if isinstance(text, str)), None)

    def value(self, value: Any) -> Any:
        """Itself, or where it is a link, what the plain node there holds."""
        if _target(value) is None:
            return value
        names = ("value", "text", "string", "seed", "noise_seed", "int", "float", "Text", "Value")
        for node in self.chain(value, names):
            if node["class_type"] in _READ:  # whatever it computes stands nowhere
                return None
            held = next((node["inputs"][name] for name in names if name in node["inputs"]), None)
            if held is not None and _target(held) is None:
                return held
        return None


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _target(link: Any) -> str | None:
    is_link = isinstance(link, list) and len(link) == 2 and type(link[0]) in (str, int) and type(link[1]) is int
    return str(link[0])[:100] if is_link else None
