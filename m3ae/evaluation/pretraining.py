"""What a pre-trained model has learnt, and how much of it comes from the other modality.

Everything is measured on the samples as they are, and with each text beside another sample's image (`shuffled`), under
the same masks: the difference is what the model reads across modalities. Words are predicted from whole images
and patches from whole texts (the `separate` schedule), however the model was trained, so that models compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import regex
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from m3ae.data.collate import TrunkCollator
from m3ae.data.samples import Sample, SampleDataset
from m3ae.inference.reconstruction import predicted_patches
from m3ae.metrics.aggregation import MeanMetrics
from m3ae.metrics.retrieval import DIRECTIONS, Ranking, summarize_ranks
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.masking import collect_labels, patchify
from m3ae.models.pretraining import M3AEForPreTraining, M3AEForPreTrainingOutput
from m3ae.tasks.gallery import Gallery
from m3ae.words import name_pattern


class PreTrainingEvaluator:
    """Measures a model on one split; the masks of a sample depend on its index alone, whatever the model.

    Args:
        dataset: The split.
        collator: A collator without random crops.
        accelerator: Device, autocast and the other processes; each process takes every P-th sample.
        batch_size: Number of samples in a batch.
    """

    def __init__(
        self, dataset: SampleDataset, collator: TrunkCollator, accelerator: Accelerator, batch_size: int
    ) -> None:
        self.dataset, self.collator, self.accelerator = dataset, collator, accelerator
        self.batch_size = batch_size

    def masked_metrics(self, model: M3AEForPreTraining, *, shuffled: bool, draws: int = 1) -> dict[str, float]:
        """Losses, PSNR of the masked patches in dB, accuracies of words and matches, nats of the latent pass.

        Means over `draws` different masks of every sample.
        """
        sums = MeanMetrics()
        assert isinstance(model.config.image_config, M3AEImageConfig)
        deviation = torch.tensor(model.config.image_config.image_std)
        image_std = deviation.repeat(model.patch_size**2).to(self.accelerator.device)  # (P·P·C,), channels last
        generator = torch.Generator(self.accelerator.device).manual_seed(0)  # of the latent pass
        for samples in chain.from_iterable(self._batches(shuffled=shuffled, draw=draw) for draw in range(draws)):
            batch = self._to_device(self.collator(samples))
            output = model(**batch, schedule="separate", generator=generator)
            _add_masked_metrics(sums, model, batch, output, image_std)
            _add_latent_metrics(sums, model, batch, output)
        metrics = sums.compute()
        weights = {name: getattr(model.config, f"{name}_weight") for name in ("mim", "mlm", "itm", "itc")}
        weights |= {"latent": model.latent_head.config.weight} if model.latent_head is not None else {}
        losses = [weight * metrics[f"{name}_loss"] for name, weight in weights.items() if f"{name}_loss" in metrics]
        return {"loss": sum(losses), **metrics}

    def word_accuracy(
        self, model: M3AEForPreTraining, word_groups: Mapping[str, Sequence[str]], *, shuffled: bool
    ) -> dict[str, float]:
        """Share of the words of each group that the model fills in when all words of all groups are hidden.

        A word counts as right when all its tokens are. Names are `<group>_word_accuracy`; `<group>_word_chance` is the
        share of the group's most frequent word.
        """
        sums = MeanMetrics()
        names = {word.lower(): group for group, words in word_groups.items() for word in words}
        pattern = name_pattern(names)
        counts: dict[str, Counter[str]] = {group: Counter() for group in word_groups}
        for samples in self._batches(shuffled=shuffled):
            batch = self.collator(samples)
            masked, labels, words = self._hide_words(samples, batch["input_ids"], pattern)
            if not words:
                continue
            positions, wanted = collect_labels(labels.to(self.accelerator.device))
            predicted = self._fill_in(model, batch | {"input_ids": masked}, positions)
            right = torch.ones_like(labels, dtype=torch.bool, device=self.accelerator.device)
            right.scatter_(1, positions, predicted == wanted)
            for row, tokens, word in words:
                group = names[word.lower()]
                counts[group][word.lower()] += 1
                sums.add(f"{group}_word_accuracy", right[row, tokens].all().float()[None])
        processes = gather_object([counts])
        totals = {group: sum((process[group] for process in processes), Counter[str]()) for group in counts}
        chance = {f"{group}_word_chance": max(c.values()) / c.total() for group, c in totals.items() if c}
        return sums.compute() | chance

    def retrieval(self, model: M3AEForPreTraining, limit: int) -> dict[str, float]:
        """Zero-shot retrieval both ways among `limit` pairs through the matching head, each input encoded once.

        Every image that stands with an equal text in one of the pairs counts as right, as in fine-tuning for
        retrieval. `shuffled_…` judges the same ranking as if each text belonged to another image. Without any pair,
        nothing is measured.
        """
        pairs = self._complete_samples(limit)
        if not pairs:
            return {}
        texts, image_ids = [pair.text or "" for pair in pairs], [pair.image_id for pair in pairs]
        gallery = Gallery(
            model.m3ae, texts, image_ids, pairs.__getitem__, self.collator, self.accelerator, self.batch_size
        )
        scores, rows = gallery.match_all(model.score), torch.arange(len(pairs))
        metrics = {"retrieval_pairs": float(len(pairs))}
        for prefix, shift in (("", 0), ("shuffled_", _shift(len(pairs)))):
            ranks = Ranking.of(scores, torch.stack([rows, (rows + shift) % len(rows)], dim=1)).ranks
            for direction, summary in zip(DIRECTIONS, map(summarize_ranks, ranks), strict=True):
                metrics |= {f"{prefix}{direction}_{name}": value for name, value in summary.items()}
        return metrics

    def _batches(self, *, shuffled: bool, draw: int = 0) -> Iterator[list[Sample]]:
        """Yield this process's samples; every sample is yielded by exactly one process."""
        size = len(self.dataset)
        share = range(self.accelerator.process_index, size, self.accelerator.num_processes)
        silent = None if self.accelerator.is_main_process else True  # None: silent where nobody looks
        starts = range(0, len(share), self.batch_size)
        title = f"{self.dataset.split}, {'other' if shuffled else 'original'} images"
        for start in tqdm(starts, desc=title, unit="batch", disable=silent, leave=False):
            indices = share[start : start + self.batch_size]
            seeds = [index + draw * size for index in indices]
            samples = [self.dataset.first(index, seed) for index, seed in zip(indices, seeds, strict=True)]
            if shuffled:
                others = [self.dataset.first((index + _shift(size)) % size) for index in indices]
                samples = [sample.with_images_of(other) for sample, other in zip(samples, others, strict=True)]
            yield samples

    def _complete_samples(self, limit: int) -> list[Sample]:
        samples = (self.dataset.first(index, index) for index in range(len(self.dataset)))
        complete = [sample for sample in samples if sample.images and sample.text is not None]
        return [complete[i * len(complete) // limit] for i in range(limit)] if limit < len(complete) else complete

    def _hide_words(
        self, samples: Sequence[Sample], input_ids: Tensor, pattern: regex.Pattern[str]
    ) -> tuple[Tensor, Tensor, list[tuple[int, list[int], str]]]:
        """Return masked ids (B, L), labels (B, L), and row, tokens and spelling of each hidden word."""
        tokenizer = self.collator.options.tokenizer
        assert tokenizer is not None
        encoded = tokenizer(
            [sample.text or "" for sample in samples],
            truncation=True,
            max_length=self.collator.options.max_text_length,
            return_offsets_mapping=True,
        )
        masked, labels = input_ids.clone(), torch.full_like(input_ids, -100)
        words = []
        for row, (sample, offsets) in enumerate(zip(samples, encoded["offset_mapping"], strict=True)):
            for match in pattern.finditer(sample.text or ""):
                tokens = [i for i, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()]
                if not tokens or offsets[tokens[-1]][1] < match.end():  # cut off
                    continue
                labels[row, tokens] = input_ids[row, tokens]
                masked[row, tokens] = tokenizer.mask_token_id
                words.append((row, tokens, match.group()))
        return masked, labels, words

    def _fill_in(self, model: M3AEForPreTraining, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        """Return the most likely token (B, M) at each position of masked texts, given whole images."""
        batch, trunk = self._to_device(batch), model.m3ae
        with self.accelerator.autocast():
            text = trunk.encode_text(batch["input_ids"], batch["attention_mask"], batch["text_present"])
            present, mask = batch["image_present"], batch.get("pixel_mask")
            image = trunk.encode_image(batch["pixel_values"], None, present, pixel_mask=mask)
            fused = trunk.fuse({"text": text, "image": image}, read={"text": positions})[-1]
            logits: Tensor = model.mlm_head(fused["text"])
        return logits.argmax(-1)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        moved: dict[str, Tensor] = send_to_device(batch, self.accelerator.device)
        return moved


def _shift(size: int) -> int:
    """Return the distance that shuffled images move: half the split, so that neighbours of one study stay apart."""
    return max(1, size // 2)


def _add_masked_metrics(
    sums: MeanMetrics,
    model: M3AEForPreTraining,
    batch: Mapping[str, Tensor],
    output: M3AEForPreTrainingOutput,
    image_std: Tensor,
) -> None:
    if output.mim_logits is not None and output.mim_mask is not None:
        pixels = batch["pixel_values"].flatten(0, -4)  # of several views, each by itself
        patches, mask = output.mim_logits.float().flatten(0, -3), output.mim_mask.flatten(0, -2)
        sums.add("mim_loss", (patches - model.mim_target(pixels)).square().mean(-1), mask)
        difference = predicted_patches(model, pixels, patches) - patchify(pixels, model.patch_size)
        mse = ((difference * image_std).square().mean(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)
        sums.add("mim_psnr", -10 * mse.clamp(min=1e-10).log10(), mask.any(1))
    heads = {"mlm": (output.mlm_logits, output.mlm_labels), "itm": (output.itm_logits, output.itm_labels)}
    for name, (logits, labels) in heads.items():
        if logits is not None and labels is not None:
            loss = cross_entropy(logits.float().movedim(-1, 1), labels, ignore_index=-100, reduction="none")
            sums.add(f"{name}_loss", loss, labels != -100)
            sums.add(f"{name}_accuracy", logits.argmax(-1) == labels, labels != -100)
    if output.losses and "itc" in output.losses:  # depends on the size of the batch, which is what it contrasts
        sums.add("itc_loss", output.losses["itc"].expand(len(batch["input_ids"])))


def _add_latent_metrics(
    sums: MeanMetrics, model: M3AEForPreTraining, batch: Mapping[str, Tensor], output: M3AEForPreTrainingOutput
) -> None:
    """Add the means of a batch, each with the weight of the samples that it is a mean of."""
    losses, size = output.losses or {}, len(batch["input_ids"])
    for name, metric in (("latent", "latent_loss"), ("kl", "kl")):
        if name in losses:
            sums.add(metric, losses[name].expand(size))
    for modality in [] if model.latent_head is None else model.latent_head.modalities.values():
        if (name := f"nll_{modality.name}") in losses:
            present = batch[f"{modality.stream}_present"]
            if present.dim() > 1:
                present = present[:, model.config.view_number(modality.name)]
            sums.add(name, losses[name].expand(size), present)
