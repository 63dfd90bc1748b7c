"""M3AE pre-training: the masked pass and its objectives.

Shapes: B batch, V views, C channels, H×W pixels, N patches, K visible patches, L text tokens, M masked tokens,
D fusion width, P patch side, W vocabulary. Masks: 1 = masked. Presence: True = the sample has this modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput

from m3ae.models import losses, masking
from m3ae.models.base import M3AEPreTrainedModel
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.fusion import Stream
from m3ae.models.heads import ContrastiveHead, Float32Linear, PixelDecoder, TokenHead, matching_score
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_head import LatentHead, init_latent_weights
from m3ae.models.losses import gather_pairs
from m3ae.models.masked_inputs import FusedTokens, MaskedInputs, check_modalities
from m3ae.models.modalities import read_inputs
from m3ae.models.modeling import STREAMS, M3AEModel, class_tokens, first_token, image_fingerprint
from m3ae.models.objectives import M3AEForGenerationOutput, latent_pass
from m3ae.models.option_checks import checked_arguments, without_labels
from m3ae.models.text_encoder import special_ids


@dataclass
class M3AEForPreTrainingOutput(ModelOutput):
    """Losses and predictions of the masked pass; what was not computed is None.

    Attributes:
        loss: () weighted sum of `losses`.
        losses: Name (`mim`, `mlm`, `itm`, `itc`, `latent`) → unweighted loss (), and the terms of the latent pass, see
            `M3AEForGenerationOutput`.
        mim_logits: (B, N, P·P·C) predicted patches, normalised per patch if `config.norm_pix_loss`;
            (B, V, N, P·P·C) of images of several views.
        mim_mask: (B, N) or (B, V, N) bool, True = masked, and the image is present.
        mlm_logits: (B, M, W) predictions at `mlm_positions`.
        mlm_positions: (B, M) positions in the text.
        mlm_labels: (B, M) the tokens there, −100 in spare slots.
        itm_logits: (B, 2), row 1 = matched.
        itm_labels: (B,) 1 = matched, −100 where the sample lacks a modality.
        hidden_states: With `output_hidden_states`, see `m3ae.models.attention.recording`.
        attentions: With `output_attentions`, see there.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    mim_logits: Tensor | None = None
    mim_mask: Tensor | None = None
    mlm_logits: Tensor | None = None
    mlm_positions: Tensor | None = None
    mlm_labels: Tensor | None = None
    itm_logits: Tensor | None = None
    itm_labels: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class M3AEForPreTraining(M3AEPreTrainedModel):
    """Masked-image modelling, masked-language modelling, image-text matching and contrast over one trunk.

    With `config.latent` there is a latent pass, too: the unmasked inputs are encoded, and explained from z alone.
    `M3AEForGeneration` loads what it has learnt.

    Raises:
        ValueError: The latent head has other modalities than the trunk's images and text.
    """

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__(config)
        assert isinstance(config.text_config, PreTrainedConfig)
        self.m3ae = M3AEModel(config)
        self.mim_head = PixelDecoder(config)
        self.mlm_head = TokenHead(config, config.text_config.vocab_size)
        self.itm_head = Float32Linear(2 * config.hidden_size, 2)
        self.itc_head = ContrastiveHead(config) if config.itc_weight else None
        self.latent_head = None
        if config.tie_word_embeddings:
            self._tied_weights_keys = {"mlm_head.decoder.weight": self._word_embeddings()}
        if isinstance(config.latent, LatentConfig):
            self.latent_head = LatentHead(config)
            check_modalities(config, self.latent_head.modalities)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_latent_weights(module, self.config.initializer_range)

    def _word_embeddings(self) -> str:
        """Return the name of the weight of the word embeddings.

        Raises:
            ValueError: They have another width than the fusion, whose tokens the head maps to words.
        """
        embeddings = self.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        if embeddings.embedding_dim != self.config.hidden_size:
            raise ValueError(
                f"tie_word_embeddings: word embeddings of width {embeddings.embedding_dim} cannot be the weights of a "
                f"head that reads tokens of width {self.config.hidden_size}; set it to false, or give both one width."
            )
        return next(f"{name}.weight" for name, module in self.named_modules() if module is embeddings)

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer that maps to the vocabulary; as published, it is not tied to the word embeddings."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the layer that maps to the vocabulary."""
        self.mlm_head.decoder = new_embeddings  # type: ignore[assignment]

    @without_labels
    @checked_arguments
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
        word_ids: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        image_noise: Tensor | None = None,
        text_noise: Tensor | None = None,
        match_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        schedule: str | None = None,
        beta: float | Tensor | None = None,
        labels: Tensor | None = None,
        return_loss: bool = True,
    ) -> M3AEForPreTrainingOutput:
        """Mask, encode each distinct input once, fuse, decode, and compute the losses whose weight is not 0.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of a model of several views; absent images are ignored.
            input_ids: (B, L) the unmasked text; rows of absent texts are ignored.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool, or (B, V).
            text_present: (B,) bool.
            special_tokens_mask: (B, L), 1 = never masked. Only the special tokens of `text_config` if None.
            word_ids: (B, L) equal numbers are tokens of one word; needed for whole-word masking.
            mlm_input_ids: (B, L) an already masked text; then `mlm_labels` is needed and `text_noise` is not used.
            mlm_labels: (B, L) tokens to predict, −100 elsewhere.
            image_ids: (B,) equal numbers name the same image; guessed from the pixels if None.
            text_ids: (B,) equal numbers name the same text; compared token by token if None. Contrast across
                processes, in training, needs them.
            image_noise: (B, N) or (B, V, N) uniform noise that chooses the visible patches.
            text_noise: (B, L, 2) uniform noise that chooses and replaces tokens.
            match_noise: (B, 2) uniform noise that chooses the mismatched pairs.
            generator: Draws the noise that is not given.
            schedule: `separate` or `joint`; the config's if None.
            beta: Weight of the KL in the latent pass; the config's if None.
            labels: (B, L) as `mlm_labels`; then `input_ids` is the masked text, as transformers'
                `DataCollatorForLanguageModeling` returns both.
            return_loss: Not used; tells Trainer that there is a loss without labels.

        Raises:
            ValueError: `mlm_input_ids` without `mlm_labels`, whole-word masking without `word_ids`, or images of
                another size than the model's.
        """
        if labels is not None:
            mlm_input_ids, mlm_labels = input_ids, labels
            input_ids = torch.where(labels == -100, input_ids, labels)
        inputs = MaskedInputs(pixel_values, input_ids, attention_mask, image_present, text_present)
        draw = partial(_draw, generator=generator, device=pixel_values.device)
        size = pixel_values.shape[0]
        image_noise = draw(image_noise, size * inputs.num_views, self._image.num_patches)
        patches = masking.mask_patches(image_noise.flatten(0, -2), self.config.mask_ratio)
        if mlm_input_ids is None:
            noise = draw(text_noise, *input_ids.shape, 2)
            words = self._mask_words(inputs, special_tokens_mask, noise, word_ids)
        elif mlm_labels is None:
            raise ValueError("mlm_input_ids needs mlm_labels beside it; got none.")
        else:
            words = masking.TokenMask(mlm_input_ids, *masking.collect_labels(mlm_labels))
        ids = (
            image_fingerprint(pixel_values) if image_ids is None else image_ids,
            input_ids if text_ids is None else text_ids,
        )
        pairs = masking.match_pairs(*ids, inputs.complete(), draw(match_noise, size, 2))
        run = {"separate": self._separate, "joint": self._joint}[schedule or self.config.schedule]
        fused = run(inputs, patches, words, pairs)
        if fused.similarity is not None:
            contrast = gather_pairs(*ids, pairs.valid) if self.training else (pairs.same, pairs.valid)
            fused.contrast = losses.contrastive_loss(fused.similarity, *contrast)
        latent = None
        if self.latent_head is not None:
            latent = self._latent_pass(self.latent_head, inputs, fused.whole, beta, generator)
        return self._decode(inputs, patches, words, pairs, fused, latent)

    @property
    def patch_size(self) -> int:
        """Side P of a patch in pixels."""
        return self._image.patch_size

    @property
    def _image(self) -> M3AEImageConfig:
        assert isinstance(self.config.image_config, M3AEImageConfig)
        return self.config.image_config

    def _mask_words(
        self, inputs: MaskedInputs, special: Tensor | None, noise: Tensor, word_ids: Tensor | None
    ) -> masking.TokenMask:
        config, text = self.config, self.config.text_config
        assert isinstance(text, PreTrainedConfig)
        if config.whole_word_masking and word_ids is None:
            raise ValueError("whole_word_masking needs word_ids, the word of each token; got none.")
        if special is None:
            tokens = inputs.input_ids.new_tensor(special_ids(text))
            special = (inputs.input_ids[..., None] == tokens).any(-1)
        maskable = ~special.bool()
        for mask in (inputs.attention_mask, None if inputs.text_present is None else inputs.text_present[:, None]):
            maskable = maskable if mask is None else maskable & mask.bool()
        assert config.mask_token_id is not None
        if config.mask_token_id >= text.vocab_size:
            raise ValueError(
                f"mask_token_id is {config.mask_token_id}, outside of a vocabulary of {text.vocab_size} words; name "
                "the mask token of the smaller vocabulary in config.mask_token_id."
            )
        return masking.mask_tokens(
            inputs.input_ids,
            maskable,
            noise,
            config.mlm_probability,
            config.mask_token_id,
            text.vocab_size,
            word_ids if config.whole_word_masking else None,
        )

    def _separate(
        self, inputs: MaskedInputs, patches: masking.PatchMask, words: masking.TokenMask, pairs: masking.MatchingPairs
    ) -> FusedTokens:
        """Mask one modality at a time and match on unmasked inputs (Chen et al. 2022)."""
        config, trunk, fused = self.config, self.m3ae, FusedTokens()
        if config.mlm_weight or config.itm_weight or self.itc_head:
            full_image = trunk.encode_image(inputs.pixel_values, None, inputs.image_present)
            fused.whole["image"] = full_image
        if config.mim_weight or config.itm_weight or self.itc_head:
            full_text = trunk.encode_text(inputs.input_ids, inputs.attention_mask, inputs.text_present)
            fused.whole["text"] = full_text
        if config.mlm_weight:
            masked = trunk.encode_text(words.input_ids, inputs.attention_mask, inputs.text_present)
            states = trunk.fuse({"text": masked, "image": full_image}, read={"text": words.positions})
            fused.text = states[-1]["text"]
        if config.mim_weight:
            visible = trunk.encode_image(inputs.pixel_values, patches.ids_keep, inputs.image_present)
            depth = None if config.mim_layer < 0 else config.mim_layer
            states = trunk.fuse({"text": full_text, "image": visible}, read={"image": None}, num_layers=depth)
            fused.image = states[-1]["image"]
        if config.itm_weight:
            streams = {"text": full_text, "image": full_image.select(pairs.image_index)}
            fused.pair = trunk.fuse(streams, read=dict.fromkeys(STREAMS, first_token(pairs.labels)))[-1]
            fused.pair_present = streams["image"].present
        if self.itc_head is not None:
            fused.similarity = self.itc_head(full_text, full_image)
        return fused

    def _joint(
        self, inputs: MaskedInputs, patches: masking.PatchMask, words: masking.TokenMask, pairs: masking.MatchingPairs
    ) -> FusedTokens:
        """Mask both modalities at once and fuse once, the mismatched pairs as further rows of the batch."""
        config, trunk, fused = self.config, self.m3ae, FusedTokens()
        text = trunk.encode_text(words.input_ids, inputs.attention_mask, inputs.text_present)
        image = trunk.encode_image(inputs.pixel_values, patches.ids_keep, inputs.image_present)
        if self.itc_head is not None:
            fused.similarity = self.itc_head(text, image)
        if not (config.mim_weight or config.mlm_weight or config.itm_weight):
            return fused
        size = inputs.input_ids.shape[0]
        own = torch.arange(size, device=inputs.input_ids.device)
        mismatched = (1 - pairs.labels).argsort(descending=True)[: (size + 1) // 2]  # all of them, and perhaps others
        if not config.itm_weight:
            mismatched = mismatched[:0]
        texts = torch.cat([own, mismatched])
        images = torch.cat([own, pairs.image_index[mismatched]])
        first = first_token(texts)
        reads_last = config.mim_layer in (-1, config.num_hidden_layers)
        read = {
            "text": torch.cat([first, words.positions[texts]], dim=1),
            "image": None if reads_last else first,
        }
        states = trunk.fuse({"text": text.select(texts), "image": image.select(images)}, read)
        fused.text = states[-1]["text"][:size, 1:]
        fused.image = states[config.mim_layer]["image"][:size]
        if config.itm_weight:
            extra_row = torch.zeros_like(own).scatter(
                0, mismatched, size + torch.arange(mismatched.shape[0], device=own.device)
            )
            row = torch.where(pairs.labels == 1, own, extra_row)
            image_tokens = class_tokens(states[-1]["image"], image.num_views)
            fused.pair = {"text": states[-1]["text"][row, :1], "image": image_tokens[row]}
            fused.pair_present = None if image.present is None else image.present[images][row]
        return fused

    def _decode(
        self,
        inputs: MaskedInputs,
        patches: masking.PatchMask,
        words: masking.TokenMask,
        pairs: masking.MatchingPairs,
        fused: FusedTokens,
        latent: M3AEForGenerationOutput | None,
    ) -> M3AEForPreTrainingOutput:
        config = self.config
        predicted: dict[str, Any] = {}
        computed: dict[str, Tensor] = {}
        if config.mim_weight and fused.image is not None:
            mask, present = patches.mask, inputs.image_present
            mask = mask if present is None else mask & present.view(-1, 1)
            views = fused.image.unflatten(1, (inputs.num_views, -1)).flatten(0, 1)  # (B·V, 1 + K, D)
            prediction = self.mim_head(views, patches.ids_restore)
            target = self.mim_target(inputs.pixels().flatten(0, -4))
            computed["mim"] = losses.masked_image_loss(prediction, target, mask)
            lead = inputs.pixel_values.shape[:-3]
            predicted |= {"mim_logits": prediction.unflatten(0, lead), "mim_mask": mask.unflatten(0, lead)}
        if config.mlm_weight and fused.text is not None:
            logits = self.mlm_head(fused.text)
            computed["mlm"] = losses.masked_language_loss(logits, words.labels)
            predicted |= {"mlm_logits": logits, "mlm_positions": words.positions, "mlm_labels": words.labels}
        if config.itm_weight and fused.pair is not None:
            pair_present = {"image": fused.pair_present} if inputs.num_views > 1 else None
            logits = self.itm_head(self.m3ae.pool(fused.pair, pair_present, inputs.num_views))
            computed["itm"] = losses.matching_loss(logits, pairs.labels, pairs.valid)
            predicted |= {"itm_logits": logits, "itm_labels": pairs.labels.masked_fill(~pairs.valid, -100)}
        if fused.contrast is not None:
            computed["itc"] = fused.contrast
        weighted = [getattr(config, f"{name}_weight") * loss for name, loss in computed.items()]
        loss = torch.stack(weighted).sum() if weighted else None
        if latent is not None and self.latent_head is not None:
            assert latent.loss is not None and latent.losses is not None
            of_latent = self.latent_head.config.weight * latent.loss
            loss = of_latent if loss is None else loss + of_latent
            computed |= {"latent": latent.loss, **latent.losses}
        return M3AEForPreTrainingOutput(loss, computed, **predicted)

    def _latent_pass(
        self,
        head: LatentHead,
        inputs: MaskedInputs,
        whole: dict[str, Stream],
        beta: float | Tensor | None,
        generator: torch.Generator | None,
    ) -> M3AEForGenerationOutput:
        """Infer z from the unmasked inputs, encoded already or not, and explain them from it."""
        given: dict[str, dict[str, Tensor]] = {}
        streams: dict[str, Stream] = {}
        for name, modality in head.modalities.items():
            if modality.stream == "text":
                given[name] = inputs.text()
                if "text" not in whole:
                    whole["text"] = self.m3ae.encode_text(inputs.input_ids, inputs.attention_mask, inputs.text_present)
                streams[name] = whole["text"]
            elif (view := self.config.view_number(name)) < inputs.num_views:
                given[name] = inputs.view(view, self._image)
                if "image" not in whole:
                    whole["image"] = self.m3ae.encode_image(inputs.pixel_values, None, inputs.image_present)
                streams[name] = whole["image"].views()[view]
        targets = read_inputs(given, head.modalities)
        experts = {name: stream for name, stream in streams.items() if name in head.experts}
        return latent_pass(head, experts, targets, beta=beta, generator=generator)

    def mim_target(self, pixel_values: Tensor) -> Tensor:
        """Patches (B, N, P·P·C) that masked-image modelling predicts, normalised if the config says so."""
        target = losses.patchify(pixel_values, self.patch_size)
        return losses.normalize_patches(target) if self.config.norm_pix_loss else target

    def score(self, text: Stream, image: Stream) -> Tensor:
        """Score encoded texts and images row by row, (B,) float32, as `M3AEForImageTextRetrieval.score` does.

        Args:
            text: Tokens (B, L, D) of `encode_text`.
            image: Tokens (B, 1 + N, D) of `encode_image`.
        """
        return matching_score(self.itm_head, self.m3ae.fuse_and_pool({"text": text, "image": image}))


def _draw(given: Tensor | None, *shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=device) if given is None else given
