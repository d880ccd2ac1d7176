"""How a node fails over a literal where a link belongs.

Facts of ComfyUI 0.3.64 (each node of node_table.py, with true, null, 5, 2.5, "abc", "", {} for each of its links):

- /prompt takes any literal there; the node fails over its first use of it, like any Python code.
- That first use is the same for most nodes that take a type; the others are named one by one below. Those of the loras'
  inputs are from comfy/sd.py.
- Not as there: what bears its first use (an empty text for a CONDITIONING goes as an empty list) fails here too, and
  null for CLIPTextEncode's clip is a RuntimeError there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from typing import Any

from simulators.comfyui.graph import is_link
from simulators.comfyui.node_table import NodeType
from simulators.comfyui.values import NodeFailure

Use = Callable[[Any], object]


def _options_of_each(conditioning: Any) -> object:  # noqa: ANN401  any JSON value
    return [condition[1] for condition in conditioning]


def _copied_samples(latent: Any) -> object:  # noqa: ANN401  any JSON value
    return latent.copy()["samples"]


def _without_alpha(pixels: Any) -> object:  # noqa: ANN401  any JSON value
    return pixels[:, :, :, :3]


def _first_shape(images: Any) -> object:  # noqa: ANN401  any JSON value
    return images[0].shape


FIRST_USES: Mapping[str, Use] = {
    "MODEL": attrgetter("clone"),
    "CLIP": attrgetter("tokenize"),
    "VAE": attrgetter("encode"),
    "CONDITIONING": _options_of_each,
    "LATENT": itemgetter("samples"),
    "IMAGE": attrgetter("shape"),
    "MASK": attrgetter("reshape"),
    "NOISE": attrgetter("generate_noise"),
    "GUIDER": attrgetter("model_patcher"),
    "SAMPLER": attrgetter("sample"),
    "SIGMAS": attrgetter("shape"),
}
"""What is done first with a value that is linked, by its type."""
OTHER_FIRST_USES: Mapping[str, Use] = {
    "LoraLoader.model": attrgetter("model"),
    "LoraLoader.clip": attrgetter("cond_stage_model"),
    "LoraLoaderModelOnly.model": attrgetter("model"),
    "KSampler.model": attrgetter("get_model_object"),
    "BasicScheduler.model": attrgetter("get_model_object"),
    "BasicGuider.model": attrgetter("model_options"),
    "VAEDecode.vae": attrgetter("decode"),
    "VAEDecodeTiled.vae": attrgetter("temporal_compression_decode"),
    "VAEEncode.pixels": _without_alpha,
    "VAEEncodeForInpaint.vae": attrgetter("downscale_ratio"),
    "SetLatentNoiseMask.samples": _copied_samples,
    "RepeatLatentBatch.samples": _copied_samples,
    "LatentUpscaleBy.samples": _copied_samples,
    "ImageScale.image": attrgetter("movedim"),
    "ImageScaleToTotalPixels.image": attrgetter("movedim"),
    "SaveImage.images": _first_shape,
    "PreviewImage.images": _first_shape,
}


def check_literals(kind: NodeType, inputs: Mapping[str, Any]) -> None:
    """Raise NodeFailure where a literal stands for a link."""
    for name, entry in kind.inputs.items():
        if entry.type in FIRST_USES and name in inputs and not is_link(inputs[name]):
            use = OTHER_FIRST_USES.get(f"{kind.name}.{name}", FIRST_USES[entry.type])
            try:
                use(inputs[name])
            except (AttributeError, TypeError, LookupError) as error:
                raise NodeFailure(type(error).__name__, str(error)) from error
            raise NodeFailure("TypeError", f"{name} is no {entry.type}")
