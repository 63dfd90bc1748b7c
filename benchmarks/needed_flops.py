"""What the losses of a pre-training step need, counted analytically.

Operations of matrix products alone, two for each multiplication with its addition: for real tokens, not padding, and
for what a loss reads. The backward pass needs twice as many as the forward pass, but for the gradient of the images.
"""

from collections.abc import Sequence
from typing import Any


def step_flops(config: Any, lengths: Sequence[int], schedule: str) -> int:
    """Count forward and backward pass for one sample of each length in tokens.

    Args:
        config: An `m3ae.M3AEConfig`.
        lengths: Tokens of each text, its first and last among them.
        schedule: `separate` or `joint`.
    """
    patches = num_visible(config) + (config.image_config.num_patches if schedule == "separate" else 0)
    return 3 * forward_flops(config, lengths, schedule) - len(lengths) * embed_patches(config, patches)


def forward_flops(config: Any, lengths: Sequence[int], schedule: str) -> int:
    """Count the forward pass; the arguments are those of `step_flops`."""
    one_text = {"separate": separate_flops, "joint": joint_flops}[schedule]
    return sum(one_text(config, length) + head_flops(config, length) for length in lengths)


def separate_flops(config: Any, length: int) -> int:
    """Count encoders and fusion of the published three passes, each distinct input encoded once."""
    tokens, visible = 1 + config.image_config.num_patches, 1 + num_visible(config)
    layers, depth = config.num_hidden_layers, mim_depth(config)
    encoded = encode_image(config, tokens) + encode_image(config, visible) + 2 * encode_text(config, length)
    masked_text = fuse(config, length, tokens, layers, num_predicted(config, length), 0)
    masked_image = fuse(config, length, visible, depth, 0, visible)
    matching = fuse(config, length, tokens, layers, 1, 1)
    return encoded + masked_text + masked_image + matching


def joint_flops(config: Any, length: int) -> int:
    """Count encoders and one fusion, and half a fusion for the pairs that are matched with another image."""
    visible, layers = 1 + num_visible(config), config.num_hidden_layers
    image_read = visible if mim_depth(config) == layers else 1
    encoded = encode_image(config, visible) + encode_text(config, length)
    own = fuse(config, length, visible, layers, 1 + num_predicted(config, length), image_read)
    return encoded + own + fuse(config, length, visible, layers, 1, 1) // 2


def head_flops(config: Any, length: int) -> int:
    """Count pixel decoder, words and matching."""
    image, width, decoder = config.image_config, config.hidden_size, config.decoder_hidden_size
    pixels = image.patch_size**2 * image.num_channels
    blocks = config.decoder_num_hidden_layers * transformer_layer(1 + image.num_patches, decoder, 4 * decoder)
    ends = linear(1 + num_visible(config), width, decoder) + linear(image.num_patches, decoder, pixels)
    words = linear(num_predicted(config, length), width, width + config.text_config.vocab_size)
    matching = 2 * linear(1, width, width) + linear(1, 2 * width, 2)
    return blocks + ends + words + matching


def encode_image(config: Any, tokens: int) -> int:
    """Count the vision transformer, with its projection, for a class token and patches."""
    image, width = config.image_config, config.image_config.hidden_size
    layer = transformer_layer(tokens, width, int(image.mlp_ratio * width))
    projected = linear(tokens, width, config.hidden_size)
    return embed_patches(config, tokens - 1) + image.num_hidden_layers * layer + projected


def embed_patches(config: Any, patches: int) -> int:
    """Count the projection of pixels."""
    image = config.image_config
    return linear(patches, image.num_channels * image.patch_size**2, image.hidden_size)


def encode_text(config: Any, tokens: int) -> int:
    """Count the text encoder, with its projection."""
    text = config.text_config
    layer = transformer_layer(tokens, text.hidden_size, text.intermediate_size)
    return text.num_hidden_layers * layer + linear(tokens, text.hidden_size, config.hidden_size)


def fuse(config: Any, text: int, image: int, layers: int, text_read: int, image_read: int) -> int:
    """Count fusion layers over both streams, the last for the tokens that are read."""
    width, inner = config.hidden_size, config.intermediate_size

    def layer(own: int, other: int, read: int) -> int:
        if not read:
            return 0
        return attention(read, own, width) + attention(read, other, width) + 2 * linear(read, width, inner)

    whole = layer(text, image, text) + layer(image, text, image)
    return (layers - 1) * whole + layer(text, image, text_read) + layer(image, text, image_read)


def transformer_layer(tokens: int, width: int, inner: int) -> int:
    """Count self-attention and MLP."""
    return attention(tokens, tokens, width) + 2 * linear(tokens, width, inner)


def attention(queries: int, keys: int, width: int) -> int:
    """Count projections of queries, keys and values, QKᵀ, the weighted sum, and the output's projection."""
    return 2 * linear(queries + keys, width, width) + 4 * queries * keys * width


def linear(rows: int, inputs: int, outputs: int) -> int:
    """Count a matrix product."""
    return 2 * rows * inputs * outputs


def num_visible(config: Any) -> int:
    """Return the patches that are not masked."""
    return max(1, int(config.image_config.num_patches * (1 - config.mask_ratio)))


def num_predicted(config: Any, length: int) -> int:
    """Return the tokens that are masked: all but the first and the last may be."""
    return max(1, round((length - 2) * config.mlm_probability))


def mim_depth(config: Any) -> int:
    """Return the fusion layers that the pixel decoder's input has passed."""
    return config.num_hidden_layers if config.mim_layer < 0 else config.mim_layer
