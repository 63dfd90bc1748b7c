"""M3AE pre-training: the masked pass and its objectives.

Shapes: B batch, V views, C channels, H×W pixels, N patches, K visible patches, L text tokens, M masked tokens,
D fusion width, P patch side, W vocabulary. Masks: 1 = masked. Presence: True = the sample has this modality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput

from m3ae.models import masking, pairs
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.fusion import Stream
from m3ae.models.heads import ContrastiveHead, Float32Linear, PixelDecoder, TokenHead, matching_score
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_head import LatentHead, init_latent_weights
from m3ae.models.latent_step import M3AEForGenerationOutput
from m3ae.models.masked_pass import SCHEDULES, FusedTokens, Masks, check_modalities, contrast_alone
from m3ae.models.modalities import read_inputs
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.objectives import latent_pass
from m3ae.models.option_checks import checked_arguments, without_labels
from m3ae.models.pairs import ImageTextBatch, image_text_batch, match_pairs, sample_ids
from m3ae.models.text_encoder import special_ids


@dataclass
class M3AEForPreTrainingOutput(ModelOutput):
    """Losses and predictions of the masked pass. Attributes that were not computed are None.

    Attributes:
        loss: () weighted sum of `losses`.
        losses: Name (`mim`, `mlm`, `itm`, `itc`, `latent`) → unweighted loss (), and the terms of the latent pass, see
            `M3AEForGenerationOutput`.
        mim_logits: (B, N, P·P·C) predicted patches, normalised per patch if `config.norm_pix_loss`;
            (B, V, N, P·P·C) of images of several views.
        mim_mask: (B, N) or (B, V, N) bool, True = masked, and the image is present.
        mlm_logits: (B, M, W) predictions at `mlm_positions`.
        mlm_positions: (B, M) positions in the text.
        mlm_labels: (B, M) the tokens at these positions, −100 in spare slots.
        itm_logits: (B, 2), row 1 = matched.
        itm_labels: (B,) 1 = matched, −100 where the sample lacks a modality.
        hidden_states: With `output_hidden_states`, what `m3ae.models.attention.recording` records.
        attentions: With `output_attentions`, what it records.
        contrasted: With `pairs_only`, the pairs in the space of contrast, and nothing else.
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
    contrasted: pairs.ContrastedPairs | None = None


class M3AEForPreTraining(M3AEPreTrainedModel):
    """Masked-image modelling, masked-language modelling, image-text matching and contrast over one trunk.

    `config.latent` adds a latent pass: it encodes the unmasked inputs, and decodes them from z alone.
    `M3AEForGeneration` loads what this pass has learnt.

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
            if self.latent_head.discriminators:
                raise ValueError("latent.modalities: `adversarial` is for the task generation; leave it out here.")
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
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        pixel_mask: Tensor | None = None,
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
        mask_ratio: float | None = None,
        beta: float | Tensor | None = None,
        with_latent: bool = True,
        labels: Tensor | None = None,
        other_pairs: Sequence[pairs.ContrastedPairs] | None = None,
        pairs_only: bool = False,
        return_loss: bool = True,
    ) -> M3AEForPreTrainingOutput:
        """Mask, encode each distinct input once, fuse, decode, and compute the losses whose weight is not 0.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of a model of several views; None without images.
            input_ids: (B, L) the unmasked text; None without text. Rows of absent images and texts are ignored.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool, or (B, V).
            text_present: (B,) bool.
            pixel_mask: (B, H, W) or (B, V, H, W), 0 = padding: never attended to, never masked, in no loss.
            special_tokens_mask: (B, L), 1 = never masked; the special tokens of `text_config` if None.
            word_ids: (B, L) equal numbers are tokens of one word; needed for whole-word masking.
            mlm_input_ids: (B, L) a text that is already masked; needs `mlm_labels`, and replaces `text_noise`.
            mlm_labels: (B, L) tokens to predict, −100 elsewhere.
            image_ids: (B,) equal numbers name the same image; guessed from the pixels if None.
            text_ids: (B,) equal numbers name the same text; compared by tokens, in one process only, if None.
            image_noise: (B, N) or (B, V, N) uniform noise that chooses the visible patches.
            text_noise: (B, L, 2) uniform noise that chooses and replaces tokens.
            match_noise: (B, 2) uniform noise that chooses the mismatched pairs.
            generator: Source of the noise that is None.
            schedule: `separate` or `joint`; the config's if None.
            mask_ratio: Share of patches to hide; the config's if None.
            beta: Weight of the KL in the latent pass; the config's if None.
            with_latent: Whether a latent head explains the inputs, for its loss.
            labels: `mlm_labels` where `input_ids` is masked, as `DataCollatorForLanguageModeling` returns them.
            other_pairs: Pairs of the other micro-batches of the optimiser step, to contrast with them, too.
            pairs_only: Whether to compute only pairs, which other micro-batches are contrasted with.
            return_loss: Not used; tells Trainer that a loss needs no labels.
        """
        if labels is not None and input_ids is not None:
            mlm_input_ids, mlm_labels = input_ids, labels
            input_ids = torch.where(labels == -100, input_ids, labels)
        texts = (input_ids, attention_mask)
        batch = image_text_batch(self.config, pixel_values, *texts, image_present, text_present, pixel_mask)
        ids = sample_ids(batch, image_ids, text_ids)
        draw = partial(_draw, generator=generator, device=batch.input_ids.device)
        patches = self._mask_patches(batch, image_noise, mask_ratio, draw)
        words = self._mask_words(batch, special_tokens_mask, word_ids, (mlm_input_ids, mlm_labels), text_noise, draw)
        matched = match_pairs(*ids, batch.complete(), draw(match_noise, batch.input_ids.shape[0], 2))
        masks = Masks(patches, words, matched)
        contrast = None
        if self.itc_head is not None:
            contrast = partial(self.itc_head, ids=ids, valid=matched.valid, others=other_pairs or ())
        config = contrast_alone(self.config) if pairs_only else self.config
        fused = SCHEDULES[schedule or config.schedule](config, self.m3ae, contrast, batch, masks)
        if pairs_only and fused.contrast is not None:
            return M3AEForPreTrainingOutput(contrasted=fused.contrast.pairs)
        latent = self._latent_pass(batch, fused.whole, beta=beta, generator=generator) if with_latent else None
        return self._decode(batch, masks, fused, latent)

    @property
    def patch_size(self) -> int:
        """Side P of a patch in pixels."""
        return self._image.patch_size

    @property
    def _image(self) -> M3AEImageConfig:
        assert isinstance(self.config.image_config, M3AEImageConfig)
        return self.config.image_config

    def _mask_patches(
        self, batch: ImageTextBatch, noise: Tensor | None, ratio: float | None, draw: Callable[..., Tensor]
    ) -> masking.PatchMask:
        noise = draw(noise, batch.pixel_values.shape[0] * batch.num_views, self._image.num_patches)
        real = masking.real_patches(batch.pixel_mask, self.patch_size)
        return masking.mask_patches(noise.flatten(0, -2), self.config.mask_ratio if ratio is None else ratio, real)

    def _mask_words(
        self,
        batch: ImageTextBatch,
        special: Tensor | None,
        word_ids: Tensor | None,
        masked: tuple[Tensor | None, Tensor | None],
        noise: Tensor | None,
        draw: Callable[..., Tensor],
    ) -> masking.TokenMask:
        """Mask the texts of a batch, unless `masked` has texts and labels already."""
        config, text = self.config, self.config.text_config
        assert isinstance(text, PreTrainedConfig) and config.mask_token_id is not None
        input_ids, labels = masked
        if input_ids is not None and labels is not None:
            return masking.TokenMask(input_ids, *masking.collect_labels(labels))
        if input_ids is not None:
            raise ValueError("mlm_input_ids needs mlm_labels beside it; got none.")
        noise = draw(noise, *batch.input_ids.shape, 2)
        if config.whole_word_masking and word_ids is None:
            raise ValueError("whole_word_masking needs word_ids, the word of each token; got none.")
        if special is None:
            special = (batch.input_ids[..., None] == batch.input_ids.new_tensor(special_ids(text))).any(-1)
        maskable = ~special.bool()
        for mask in (batch.attention_mask, None if batch.text_present is None else batch.text_present[:, None]):
            maskable = maskable if mask is None else maskable & mask.bool()
        if config.mask_token_id >= text.vocab_size:
            raise ValueError(
                f"mask_token_id is {config.mask_token_id}, outside of a vocabulary of {text.vocab_size} words; name "
                "the mask token of the smaller vocabulary in config.mask_token_id."
            )
        words = word_ids if config.whole_word_masking else None
        return masking.mask_tokens(
            batch.input_ids, maskable, noise, config.mlm_probability, config.mask_token_id, text.vocab_size, words
        )

    def _decode(
        self,
        batch: ImageTextBatch,
        masks: Masks,
        fused: FusedTokens,
        latent: M3AEForGenerationOutput | None,
    ) -> M3AEForPreTrainingOutput:
        """Predict what is hidden, and compute the losses."""
        config, (patches, words, matched) = self.config, masks
        predicted: dict[str, Any] = {}
        computed: dict[str, Tensor] = {}
        if config.mim_weight and fused.image is not None:
            mask = patches.mask if batch.image_present is None else patches.mask & batch.image_present.view(-1, 1)
            views = fused.image.unflatten(1, (batch.num_views, -1)).flatten(0, 1)  # (B·V, 1 + K, D)
            prediction = self.mim_head(views, patches.ids_restore, patches.real)
            target = self.mim_target(batch.pixels().flatten(0, -4))
            computed["mim"] = masking.masked_image_loss(prediction, target, mask)
            lead = batch.pixel_values.shape[:-3]
            predicted |= {"mim_logits": prediction.unflatten(0, lead), "mim_mask": mask.unflatten(0, lead)}
        if config.mlm_weight and fused.text is not None:
            logits = self.mlm_head(fused.text)
            computed["mlm"] = masking.masked_language_loss(logits, words.labels)
            predicted |= {"mlm_logits": logits, "mlm_positions": words.positions, "mlm_labels": words.labels}
        if config.itm_weight and fused.pair is not None:
            present = {"image": fused.pair_present} if batch.num_views > 1 else None
            logits = self.itm_head(self.m3ae.pool(fused.pair, present, batch.num_views))
            computed["itm"] = pairs.matching_loss(logits, matched.labels, matched.valid)
            predicted |= {"itm_logits": logits, "itm_labels": matched.labels.masked_fill(~matched.valid, -100)}
        if fused.contrast is not None:
            computed["itc"] = fused.contrast.loss
        weights = {name: getattr(config, f"{name}_weight") for name in computed}
        if latent is not None and self.latent_head is not None:
            assert latent.loss is not None and latent.losses is not None
            weights["latent"] = self.latent_head.config.weight
            computed |= {"latent": latent.loss, **latent.losses}
        loss = torch.stack([weight * computed[name] for name, weight in weights.items()]).sum() if weights else None
        return M3AEForPreTrainingOutput(loss, computed, **predicted)

    def _latent_pass(
        self, batch: ImageTextBatch, whole: dict[str, Stream], **options: Any
    ) -> M3AEForGenerationOutput | None:
        """Infer z from the unmasked inputs, encoded already or not, and explain them from it."""
        head = self.latent_head
        if head is None:
            return None
        explained: dict[str, dict[str, Tensor]] = {}
        streams: dict[str, Stream] = {}
        for name, modality in head.modalities.items():
            if modality.stream == "text":
                explained[name] = batch.text()
                if "text" not in whole:
                    whole["text"] = self.m3ae.encode_text(batch.input_ids, batch.attention_mask, batch.text_present)
                streams[name] = whole["text"]
            elif (view := self.config.view_number(name)) < batch.num_views:
                explained[name] = batch.view(view, self._image)
                if "image" not in whole:
                    whole["image"] = batch.encode_image(self.m3ae)
                streams[name] = whole["image"].views()[view]
        experts = {name: stream for name, stream in streams.items() if name in head.experts}
        inputs = read_inputs(explained, head.modalities)
        return latent_pass(head, experts, inputs, fusion=self.m3ae.fusion, **options)

    def mim_target(self, pixel_values: Tensor) -> Tensor:
        """Patches (B, N, P·P·C) that masked-image modelling predicts, normalised if the config says so."""
        target = masking.patchify(pixel_values, self.patch_size)
        return masking.normalize_patches(target) if self.config.norm_pix_loss else target

    def score(self, text: Stream, image: Stream) -> Tensor:
        """Score encoded texts and images row by row, (B,) float32, as `M3AEForImageTextRetrieval.score` does.

        Args:
            text: Tokens (B, L, D) of `encode_text`.
            image: Tokens (B, 1 + N, D) of `encode_image`.
        """
        return matching_score(self.itm_head, self.m3ae.fuse_and_pool({"text": text, "image": image}))


def _draw(noise: Tensor | None, *shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return uniform noise of a shape, unless the caller has some."""
    return torch.rand(shape, generator=generator, device=device) if noise is None else noise
