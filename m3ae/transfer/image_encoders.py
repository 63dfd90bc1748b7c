"""Starting a model from a published vision transformer, and taking a model to another image size.

Building a model never reads another checkpoint; these are explicit steps on a model that exists. A report says what
they copy, leave out and miss.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from transformers.activations import ACT2FN

from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.encoders import resample_positions
from m3ae.models.heads import PixelDecoder, sincos_positions
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.transfer.checkpoints import some
from m3ae.transfer.sources import InitReport, require_encoder, require_none, trunk_of
from m3ae.transfer.vision_transformers import SOURCES, PublishedViT, activation_name, block_number


def init_image_encoder(model: M3AEPreTrainedModel, source: str | PublishedViT) -> InitReport:
    """Copy a published vision transformer into the image encoder, its position table interpolated to our image size.

    The configuration takes over how the source's images are normalised; the processor is to be built from it.
    A source with more blocks than ours gives its first ones: the published M3AE takes 11 of CLIP's 12. The encoder
    then computes what the source does up to there, and applies the source's last normalisation.

    Args:
        model: Any M3AE.
        source: One of `SOURCES`, or what `read_vit` has read. Nothing in a file is run.

    Raises:
        ValueError: The source cannot be read, is something else, or has another width, depth, patch size, activation …
            than `config.image_config`; or the model has no image encoder, as one for generation may.
    """
    encoder: Any = require_encoder(model, "image_encoder", "vit")
    vit, config = encoder.vit, model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    if isinstance(source, str):
        from m3ae.transfer.vision_sources import read_vit  # needs timm, which is slow to import

        source = read_vit(source)
    published = source
    options = published.options | _stated_normalization(config, published)
    different = image_contradictions(options, config.to_dict())
    require_none("vision transformer", published.source, config, different, "image_config", _hint(different, config))
    state, expected = dict(published.state), vit.state_dict().keys()
    deeper = [name for name in state if block_number(name) >= config.num_hidden_layers]
    surplus = [name for name in state if name not in expected and name not in deeper]
    missing = [name for name in expected if name not in state]
    # Without a last normalisation the source pools first and normalises then; any other gap changes what is computed.
    if surplus or any(not name.startswith("norm.") for name in missing):
        raise ValueError(
            f"The vision transformer in {published.source!r} computes something else than ours: it has parameters "
            f"that ours lacks ({some(surplus)}), or lacks some of ours ({some(missing)}). Expected {SOURCES}."
        )
    if "pos_embed" in state:
        side, num_prefix = config.image_size // config.patch_size, int(config.class_token)
        state["pos_embed"] = resample_positions(state["pos_embed"], side, num_prefix, *published.resampling)
    copied = [name for name in expected if name in state]
    vit.load_state_dict({name: state[name] for name in copied}, strict=False)
    if published.normalization is not None:
        config.image_mean, config.image_std = map(list, published.normalization)
    where, left_out = f"{published.source} ({published.kind})", deeper + published.left_out
    remarks = _remarks(config, published)
    return InitReport("image encoder", where, copied, missing, left_out, remarks, published.normalization)


def image_options(published: PublishedViT) -> dict[str, Any]:
    """Return the options of `M3AEImageConfig` for an encoder that computes what a published one does."""
    options = published.assumed | published.options
    if published.normalization is not None:
        options |= dict(zip(("image_mean", "image_std"), map(list, published.normalization), strict=True))
    return options


def _same_activation(one: str, other: str) -> bool:
    known = [activation_name(ACT2FN[name]) for name in (one, other) if name in ACT2FN]
    return one == other or (len(known) == 2 and known[0] is not None and known[0] == known[1])


# Whether a published encoder's parameters compute with our value of an option what they do with the encoder's.
_AGREES: dict[str, Callable[[Any, Any], bool]] = {
    "image_size": lambda *_: True,  # positions are interpolated
    "layer_norm_eps": lambda *_: True,  # a remark says so
    "num_hidden_layers": operator.ge,  # the first blocks
    "mlp_ratio": partial(math.isclose, rel_tol=1e-3),  # rounded to whole widths
    "layer_scale": lambda source, ours: (source is None) == (ours is None),  # an initial value
    "hidden_act": _same_activation,
}


def image_contradictions(source: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a published encoder, name → value, that our options contradict.

    Args:
        source: Options of the published encoder.
        options: Options of `M3AEImageConfig`, or some of them. The image size may differ, as positions are
            interpolated, and so may `layer_norm_eps` and the initial `layer_scale`; there may be fewer blocks.
    """
    return {
        name: value
        for name, value in source.items()
        if name in options and not _AGREES.get(name, operator.eq)(value, options[name])
    }


def resize_images(model: M3AEPreTrainedModel, image_size: int) -> None:
    """Make a model take images of another size, as fine-tuning at 384 px of a model pre-trained at 288 px does.

    The image encoder's position table is interpolated bicubically, its class token kept. The pixel decoder's fixed
    sine-cosine table is computed for the new size. The processor is to be built anew: `M3AEImageProcessor.for_size`.

    Args:
        model: Any M3AE; changed in place, its configuration too. Do this before an optimiser is made.
        image_size: Side in pixels, a multiple of the patch size.

    Raises:
        ValueError: It is no such multiple.
    """
    config = model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    M3AEImageConfig(image_size=image_size, patch_size=config.patch_size)  # raises if the patches do not fit
    trunk_of(model).image_encoder.resize(image_size)
    for module in model.modules():
        if isinstance(module, PixelDecoder):
            module.side = image_size // config.patch_size
            module.positions = sincos_positions(module.side, module.positions.shape[-1]).to(module.positions)
    config.image_size = image_size


def _hint(different: Mapping[str, Any], config: M3AEImageConfig) -> str:
    if (different.get("hidden_act"), config.hidden_act) != ("gelu", "quick_gelu"):
        return ""
    return (
        " OpenAI's CLIP was trained with quick_gelu, although timm offers it with gelu too: of a folder with its "
        "weights, name the .safetensors file, which states neither."
    )


def _stated_normalization(config: M3AEImageConfig, published: PublishedViT) -> dict[str, Any]:
    """Return how the source's images are normalised, if the configuration has other values than the default ones."""
    default = M3AEImageConfig(num_channels=config.num_channels)
    names = ("image_mean", "image_std")
    if published.normalization is None or all(getattr(config, name) == getattr(default, name) for name in names):
        return {}
    return dict(zip(names, map(list, published.normalization), strict=True))


def _remarks(config: M3AEImageConfig, published: PublishedViT) -> list[str]:
    remarks, options = [], published.options
    if options["num_hidden_layers"] > config.num_hidden_layers:
        remarks.append(f"the first {config.num_hidden_layers} of its {options['num_hidden_layers']} blocks")
    if options["image_size"] != config.image_size and options["rope_theta"] is None:
        old, new = (size // config.patch_size for size in (options["image_size"], config.image_size))
        remarks.append(f"position table interpolated from {old}×{old} to {new}×{new} patches")
    if unknown := [name for name in ("num_attention_heads", "hidden_act", "layer_norm_eps") if name not in options]:
        values = ", ".join(f"{name} {getattr(config, name)}" for name in unknown)
        remarks.append(f"it does not say these, taken to be as here: {values}")
    eps = options.get("layer_norm_eps", config.layer_norm_eps)
    if eps != config.layer_norm_eps:
        remarks.append(f"layer_norm_eps is {eps:g} there and {config.layer_norm_eps:g} here")
    if published.normalization is None:
        remarks.append("it does not say how images are normalised: image_mean and image_std of image_config stay")
    return [*remarks, *published.remarks]
