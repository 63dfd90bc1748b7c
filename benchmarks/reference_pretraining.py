"""The published pre-training step (Chen et al. 2022) in plain modules, as something to measure against.

Three full passes as published: masked images with their texts, masked texts with their images, and pairs to match.
Each encodes both sides anew and runs the whole fusion; attention weights are materialised, words predicted at every
position, and texts are padded to the maximum. Nothing of the package is used here, but modules have the names of the
package's, so that its models' weights load.

Shapes: B batch, N patches, K visible patches, L text tokens, T queries, S keys, D width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, dropout: nn.Module) -> Tensor:
    """softmax(QKᵀ/√d)V of queries (B, T, D) over keys (B, S, D); mask (B, S), 0 = hidden."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + (1.0 - mask[:, None, None].to(scores.dtype)) * torch.finfo(scores.dtype).min
    return (dropout(scores.softmax(-1)) @ value).transpose(1, 2).flatten(-2)


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…) to (…)."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm block of CLIP's vision transformer."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.act = QuickGELU()

    def forward(self, x: Tensor) -> Tensor:
        """Update the tokens (B, T, D)."""
        query, key, value = self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        x = x + self.attn["proj"](attend(query, key, value, self.heads, None, nn.Identity()))
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(nn.Module):
    """CLIP's vision transformer; the class token is always kept."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, count = config.hidden_size, (config.image_size // config.patch_size) ** 2
        patch_embed = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size, bias=False)
        self.patch_embed = nn.ModuleDict({"proj": patch_embed})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + count, width))
        self.norm_pre = nn.LayerNorm(width, config.layer_norm_eps)
        blocks = (
            Block(width, config.num_attention_heads, config.layer_norm_eps) for _ in range(config.num_hidden_layers)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode images (B, C, H, W), all patches or those that `ids_keep` (B, K) names: (B, 1 + N or K, D)."""
        patches = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        if ids_keep is not None:
            visible = x[:, 1:].gather(1, ids_keep[..., None].expand(-1, -1, x.shape[-1]))
            x = torch.cat([x[:, :1], visible], dim=1)
        return self.norm(self.blocks(self.norm_pre(x)))


class SelfOutput(nn.Module):
    """What ends BERT's attention and its MLP: dense, dropout, residual connection, normalisation."""

    def __init__(self, inner: int, width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map (…, inner) and the residual (…, D) to (…, D)."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class RobertaLayer(nn.Module):
    """A post-norm layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner, dropout = config.hidden_size, config.intermediate_size, config.hidden_dropout_prob
        self.heads, self.dropout = config.num_attention_heads, nn.Dropout(config.attention_probs_dropout_prob)
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        output = SelfOutput(width, width, dropout, config.layer_norm_eps)
        self.attention = nn.ModuleDict({"self": projections, "output": output})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = SelfOutput(inner, width, dropout, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update the tokens (B, L, D)."""
        projections: Any = self.attention["self"]
        parts = (projections[name](x) for name in ("query", "key", "value"))
        x = self.attention["output"](attend(*parts, self.heads, mask, self.dropout), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Roberta(nn.Module):
    """RoBERTa without its pooler."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.pad = config.hidden_size, config.pad_token_id
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width),
                "position_embeddings": nn.Embedding(config.max_position_embeddings, width),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, width),
                "LayerNorm": nn.LayerNorm(width, config.layer_norm_eps),
            }
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(RobertaLayer(config) for _ in range(config.num_hidden_layers))}
        )

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode texts (B, L): (B, L, D)."""
        real = input_ids != self.pad
        positions = (real.cumsum(1) * real) + self.pad
        x = self.embeddings["word_embeddings"](input_ids) + self.embeddings["position_embeddings"](positions)
        x = x + self.embeddings["token_type_embeddings"](torch.zeros_like(input_ids))
        x = self.dropout(self.embeddings["LayerNorm"](x))
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x, mask)
        return x


class FusionAttention(nn.Module):
    """Attention with the residual connection and post-norm of BERT."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.weights_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from tokens (B, T, D) to context (B, S, D)."""
        parts = (self.query(x), self.key(context), self.value(context))
        return self.norm(x + self.dropout(self.output(attend(*parts, self.heads, mask, self.weights_dropout))))


class FusionLayer(nn.Module):
    """One stream's layer: self-attention, cross-attention, MLP."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.self_attention, self.cross_attention = FusionAttention(config), FusionAttention(config)
        self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm, self.dropout = nn.LayerNorm(width, config.layer_norm_eps), nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None, context: Tensor, context_mask: Tensor | None) -> Tensor:
        """Update the tokens (B, T, D)."""
        x = self.cross_attention(self.self_attention(x, x, mask), context, context_mask)
        return self.norm(x + self.dropout(self.output(F.gelu(self.intermediate(x)))))


class PixelDecoder(nn.Module):
    """Fills in the masked patches from the fused visible ones."""

    positions: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        image, width = config.image_config, config.decoder_hidden_size
        eps, heads = image.layer_norm_eps, config.decoder_num_attention_heads
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        count = (image.image_size // image.patch_size) ** 2
        self.register_buffer("positions", torch.zeros(1, 1 + count, width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, eps) for _ in range(config.decoder_num_hidden_layers)))
        self.norm = nn.LayerNorm(width, eps)
        self.predict = nn.Linear(width, image.patch_size**2 * image.num_channels)

    def forward(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict the patches (B, N, P·P·C) from tokens (B, 1 + K, D)."""
        x = self.embed(x)
        hidden = self.mask_token.to(x.dtype).expand(len(x), ids_restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        patches = patches.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.positions
        return self.predict(self.norm(self.blocks(x)))[:, 1:]


class ReferencePreTraining(nn.Module):
    """The published model and its three passes.

    Args:
        config: Sizes, named as in `m3ae.M3AEConfig`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        text, image = config.text_config, config.image_config

        def pair(module: Any) -> nn.ModuleDict:
            return nn.ModuleDict({"text": module(), "image": module()})

        self.m3ae = nn.ModuleDict(
            {
                "image_encoder": nn.ModuleDict({"vit": VisionTransformer(image)}),
                "text_encoder": Roberta(text),
                "projections": nn.ModuleDict(
                    {"text": nn.Linear(text.hidden_size, width), "image": nn.Linear(image.hidden_size, width)}
                ),
                "modality_types": nn.Embedding(2, width),
                "fusion": nn.ModuleDict(
                    {
                        "layers": nn.ModuleList(
                            pair(lambda: FusionLayer(config)) for _ in range(config.num_hidden_layers)
                        )
                    }
                ),
                "poolers": pair(lambda: nn.ModuleDict({"dense": nn.Linear(width, width)})),
            }
        )
        self.mim_head = PixelDecoder(config)
        self.mlm_head = nn.ModuleDict(
            {
                "dense": nn.Linear(width, width),
                "norm": nn.LayerNorm(width, config.layer_norm_eps),
                "decoder": nn.Linear(width, text.vocab_size),
            }
        )
        self.itm_head = nn.Linear(2 * width, 2)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_noise: Tensor,
        mlm_input_ids: Tensor,
        mlm_labels: Tensor,
        image_index: Tensor,
        itm_labels: Tensor,
    ) -> dict[str, Tensor]:
        """Return the losses `mim`, `mlm` and `itm`.

        Args:
            pixel_values: (B, C, H, W).
            input_ids: (B, L).
            attention_mask: (B, L), 0 = padding.
            image_noise: (B, N) that chooses the visible patches.
            mlm_input_ids: (B, L) the masked texts.
            mlm_labels: (B, L), −100 where nothing is to be predicted.
            image_index: (B,) the image that each text is paired with.
            itm_labels: (B,) 1 = own image.
        """
        ids_shuffle = image_noise.argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        num_keep = int(image_noise.shape[1] * (1 - self.config.mask_ratio))
        masked_image = self.infer(pixel_values, input_ids, attention_mask, ids_shuffle[:, :num_keep])
        masked_text = self.infer(pixel_values, mlm_input_ids, attention_mask)
        matched = self.infer(pixel_values[image_index], input_ids, attention_mask)

        patches = self.mim_head(masked_image[self.config.mim_layer]["image"], ids_restore)
        error = F.mse_loss(patches, self.target(pixel_values).to(patches.dtype), reduction="none").mean(-1)
        hidden = ids_restore >= num_keep
        head = self.mlm_head
        logits = head["decoder"](head["norm"](F.gelu(head["dense"](masked_text[-1]["text"]))))
        first = (self.m3ae["poolers"][name]["dense"](matched[-1][name][:, 0]) for name in ("text", "image"))  # type: ignore[index]
        pooled = torch.cat([vector.tanh() for vector in first], dim=-1)
        return {
            "mim": (error * hidden).sum() / hidden.sum(),
            "mlm": F.cross_entropy(logits.flatten(0, 1), mlm_labels.flatten(), ignore_index=-100),
            "itm": F.cross_entropy(self.itm_head(pooled), itm_labels),
        }

    def infer(
        self, pixel_values: Tensor, input_ids: Tensor, mask: Tensor, ids_keep: Tensor | None = None
    ) -> list[Mapping[str, Tensor]]:
        """Encode both sides and fuse them; return the tokens that enter each layer, then those that leave the last."""
        trunk: Any = self.m3ae
        text = trunk["projections"]["text"](trunk["text_encoder"](input_ids, mask))
        image = trunk["projections"]["image"](trunk["image_encoder"]["vit"](pixel_values, ids_keep))
        states = [
            {"text": text + trunk["modality_types"].weight[0], "image": image + trunk["modality_types"].weight[1]}
        ]
        for layer in trunk["fusion"]["layers"]:
            text, image = states[-1]["text"], states[-1]["image"]
            states.append(
                {"text": layer["text"](text, mask, image, None), "image": layer["image"](image, None, text, mask)}
            )
        return states

    def target(self, pixel_values: Tensor) -> Tensor:
        """Return the patches (B, N, P·P·C), each of mean 0 and variance 1 if the config says so."""
        side = self.config.image_config.patch_size
        patches = pixel_values.unfold(2, side, side).unfold(3, side, side)  # (B, C, rows, columns, P, P)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        if not self.config.norm_pix_loss:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
