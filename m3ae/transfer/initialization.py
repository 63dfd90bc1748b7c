"""Starting an M3AE from published encoders, and taking it to another image size.

Building a model never reads another checkpoint; these are explicit steps on a model that exists. What they copy, leave
out and miss is said in a report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from m3ae.models.base import M3AEPreTrainedModel
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.encoders import activation, resample_positions
from m3ae.models.heads import PixelDecoder, sincos_positions
from m3ae.models.modeling import M3AEEncoders
from m3ae.transfer.encoders import (
    Normalization,
    PublishedViT,
    activation_name,
    read_text_encoder,
    read_vit,
)
from m3ae.transfer.reading import some


@dataclass(frozen=True)
class InitReport:
    """What was copied into an encoder, and what was not.

    Attributes:
        encoder: `image encoder` or `text encoder`.
        source: Where the parameters come from.
        copied: Names of the encoder's parameters that were copied.
        missing: Names of those that the source lacks; they keep their initial values.
        unexpected: Names of the source's parameters that were left out.
        remarks: What else a user should know.
        normalization: Mean and standard deviation that the source's images were normalised with, if it says so.
    """

    encoder: str
    source: str
    copied: list[str]
    missing: list[str]
    unexpected: list[str]
    remarks: list[str] = field(default_factory=list)
    normalization: Normalization | None = None

    def __str__(self) -> str:
        lines = [f"{self.encoder}: {len(self.copied)} parameters copied from {self.source}"]
        if self.missing:
            lines.append(f"  not there, left as initialised: {', '.join(self.missing)}")
        if self.unexpected:
            groups: dict[str, list[str]] = {}
            for name in self.unexpected:
                groups.setdefault(name.partition(".")[0], []).append(name)
            said = (names[0] if len(names) == 1 else f"{group} ({len(names)})" for group, names in groups.items())
            lines.append(f"  left out: {', '.join(said)}")
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])


def init_image_encoder(model: M3AEPreTrainedModel, source: str) -> InitReport:
    """Copy a published vision transformer into the image encoder, its position table interpolated to our image size.

    The configuration takes over how the source's images are normalised; the processor is to be built from it.
    A source with more blocks than ours gives its first ones: the published M3AE takes 11 of CLIP's 12. The encoder
    then computes what the source does up to there, and applies the source's last normalisation.

    Args:
        model: Any M3AE.
        source: Name of a timm model; a folder or `.safetensors` file that timm has saved; a folder or hub name of a
            transformers `CLIPModel`, `CLIPVisionModel`, `ViTMAEModel` or `ViTMAEForPreTraining`; a CLIP file of
            OpenAI, TorchScript archive or state dict. Nothing in a file is run.

    Raises:
        ValueError: The source cannot be read, is something else, or has another width, depth, patch size, activation …
            than `config.image_config`; or the model has no image encoder, as one for generation may.
    """
    _require_encoder(model, "image_encoder", "vit")
    vit, config = _trunk(model).image_encoder.vit, model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    published = read_vit(source)
    sizes = _sizes(published.state, source)
    _check_image_options(config, sizes | published.stated | _stated_normalization(config, published), source)
    state, expected = dict(published.state), vit.state_dict().keys()
    deeper = [name for name in state if _block(name) >= config.num_hidden_layers]
    surplus = [name for name in state if name not in expected and name not in deeper]
    missing = [name for name in expected if name not in state]
    # Without a last normalisation the source pools first and normalises then; any other gap changes what is computed.
    if surplus or any(not name.startswith("norm.") for name in missing):
        raise ValueError(
            f"The vision transformer in {source!r} computes something else than ours: it has parameters that we have "
            f"no place for ({some(surplus)}) or lacks some of ours ({some(missing)}). Start from a plain one, such as "
            "CLIP's or MAE's."
        )
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    table = state["pos_embed"].reshape(1, -1, config.hidden_size)
    state["pos_embed"] = resample_positions(table, config.image_size // config.patch_size)
    copied = [name for name in expected if name in state]
    vit.load_state_dict({name: state[name] for name in copied}, strict=False)
    if published.normalization is not None:
        config.image_mean, config.image_std = map(list, published.normalization)
    remarks = _image_remarks(config, published, sizes)
    where = f"{source} ({published.kind})"
    left_out = deeper + published.left_out
    return InitReport("image encoder", where, copied, missing, left_out, remarks, published.normalization)


def init_text_encoder(model: M3AEPreTrainedModel, source: str) -> InitReport:
    """Copy a published text encoder into the model's, which has to be of the same architecture and size.

    Its position table may be longer than ours, which then takes the first rows.

    Args:
        model: Any M3AE.
        source: Folder or hub name of a bidirectional encoder of transformers, with any head, or of another M3AE.

    Raises:
        ValueError: The source cannot be read, is something else, or has another architecture, vocabulary, width …
            than `config.text_config`; or the model has no text encoder, as one for generation may.
    """
    _require_encoder(model, "text_encoder", "roberta")
    encoder, config = _trunk(model).text_encoder, model.config.text_config
    assert isinstance(config, PreTrainedConfig)
    published, left_out = read_text_encoder(source)
    theirs, remarks = published.config, []
    _require_none("text encoder", source, config, contradictions(theirs, config.to_dict()), "text_config")
    state, expected = published.state_dict(), encoder.state_dict()
    for name in (name for name in state if state[name].shape != expected[name].shape):
        remarks.append(f"the first {len(expected[name])} of its {len(state[name])} positions")
        state[name] = state[name][: len(expected[name])]
    for name in (name for name in theirs.to_dict() if name.endswith("_eps")):
        if getattr(theirs, name) != getattr(config, name):
            remarks.append(f"{name} is {getattr(theirs, name):g} there and {getattr(config, name):g} here")
    encoder.load_state_dict(state)
    kind = f"transformers' {type(published).__name__}"
    return InitReport("text encoder", f"{source} ({kind})", list(state), [], left_out, remarks)


def contradictions(source: PreTrainedConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a text encoder under which its weights would compute something else.

    Args:
        source: The configuration that the weights were trained with.
        options: Options of the same or another configuration. Dropout and the like may differ, and so may
            `layer_norm_eps`; the position table may be shorter, unless distances are counted with it.

    Returns:
        Name → the source's value, for each option that contradicts it.
    """
    if options.get("model_type", source.model_type) != source.model_type:
        return {"model_type": source.model_type}
    computed = {field.name for field in fields(source)} - {field.name for field in fields(PreTrainedConfig)}
    computed |= {"pad_token_id"} & {field.name for field in fields(source)}
    free = re.compile(r"drop|initializer|_eps$|use_cache|_token_id$|^position_embedding_type$|^summary_|^classifier_")
    found = {}
    for name, value in options.items():
        name = source.attribute_map.get(name, name)
        theirs = getattr(source, name, None)
        if name not in computed or (free.search(name) and name != "pad_token_id") or value == theirs:
            continue
        relative = getattr(source, "relative_attention", False)
        if name == "max_position_embeddings" and not relative and theirs is not None and value <= theirs:
            continue
        found[name] = theirs
    return found


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
    _trunk(model).image_encoder.resize(image_size)
    for module in model.modules():
        if isinstance(module, PixelDecoder):
            module.side = image_size // config.patch_size
            module.positions = sincos_positions(module.side, module.positions.shape[-1]).to(module.positions)
    config.image_size = image_size


def _trunk(model: M3AEPreTrainedModel) -> M3AEEncoders:
    trunk = model.base_model
    assert isinstance(trunk, M3AEEncoders)
    return trunk


def _require_encoder(model: M3AEPreTrainedModel, name: str, kind: str) -> None:
    """Raise if the model was built without an encoder that something is to be copied into."""
    if not hasattr(_trunk(model), name):
        raise ValueError(
            f"init.{name}: no modality of this model has the encoder {kind!r}, so there is nothing to copy it into; "
            "leave it out, or give a modality that encoder."
        )


def _sizes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the options of `M3AEImageConfig` that the parameters show."""
    needed = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight")
    if lacking := [name for name in needed if name not in state]:
        raise ValueError(
            f"The vision transformer in {source!r} lacks {some(lacking)}; ours has a patch embedding, a class token, "
            "a position table, and blocks of attention and MLP. Start from a plain one, such as CLIP's or MAE's."
        )
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].numel() // width - 1)
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": 1 + max(_block(name) for name in state),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "pre_norm": "norm_pre.weight" in state,
    }


def _check_image_options(config: M3AEImageConfig, theirs: Mapping[str, Any], source: str) -> None:
    """Raise on options that would make the copied parameters compute something else."""
    same = {name: value == getattr(config, name) for name, value in theirs.items()}
    same |= {
        "image_size": True,  # interpolated
        "layer_norm_eps": True,  # remarked on
        "num_hidden_layers": theirs["num_hidden_layers"] >= config.num_hidden_layers,
        "mlp_ratio": math.isclose(theirs["mlp_ratio"], config.mlp_ratio, rel_tol=1e-3),  # rounded to whole widths
        "hidden_act": theirs.get("hidden_act") in (None, activation_name(activation(config.hidden_act))),
    }
    different = {name: value for name, value in theirs.items() if not same[name]}
    hint = ""
    if (different.get("hidden_act"), config.hidden_act) == ("gelu", "quick_gelu"):
        hint = (
            " OpenAI's CLIP was trained with quick_gelu, although timm offers it with gelu too: of a folder with its "
            "weights, name the .safetensors file, which states neither."
        )
    _require_none("vision transformer", source, config, different, "image_config", hint)


def _stated_normalization(config: M3AEImageConfig, published: PublishedViT) -> dict[str, Any]:
    """Return how the source's images are normalised, if the configuration has other values than the default ones."""
    default = M3AEImageConfig(num_channels=config.num_channels)
    if published.normalization is None or (config.image_mean, config.image_std) == (
        default.image_mean,
        default.image_std,
    ):
        return {}
    return dict(zip(("image_mean", "image_std"), map(list, published.normalization), strict=True))


def _require_none(
    what: str, source: str, config: Any, different: Mapping[str, Any], section: str, hint: str = ""
) -> None:
    if not different:
        return
    said = "; ".join(f"{name} is {value} there and {getattr(config, name)} here" for name, value in different.items())
    options = ", ".join(f"{name}: {value}" for name, value in different.items())
    raise ValueError(
        f"The {what} in {source!r} is not the one that {section} describes: {said}. Start from another, or build the "
        f"model with {section}: {{{options}}}.{hint}"
    )


def _image_remarks(config: M3AEImageConfig, published: PublishedViT, sizes: Mapping[str, Any]) -> list[str]:
    remarks = []
    if sizes["num_hidden_layers"] > config.num_hidden_layers:
        remarks.append(f"the first {config.num_hidden_layers} of its {sizes['num_hidden_layers']} blocks")
    if sizes["image_size"] != config.image_size:
        old, new = (size // config.patch_size for size in (sizes["image_size"], config.image_size))
        remarks.append(f"position table interpolated from {old}×{old} to {new}×{new} patches")
    unknown = [n for n in ("num_attention_heads", "hidden_act", "layer_norm_eps") if n not in published.stated]
    if unknown:
        said = ", ".join(f"{name} {getattr(config, name)}" for name in unknown)
        remarks.append(f"it does not say these, taken to be as here: {said}")
    eps = published.stated.get("layer_norm_eps", config.layer_norm_eps)
    if eps != config.layer_norm_eps:
        remarks.append(f"layer_norm_eps is {eps:g} there and {config.layer_norm_eps:g} here")
    if published.normalization is None:
        remarks.append("it does not say how images are normalised: image_mean and image_std of image_config stay")
    return [*remarks, *published.remarks]


def _block(name: str) -> int:
    """Return the number of the block that a parameter belongs to; −1 outside the blocks."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else -1
