"""Generation as a task of the training loop: a multimodal VAE on columns of a prepared folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from transformers import PreTrainedTokenizerBase

from m3ae.data.collate import Batch, Collator
from m3ae.data.prepared import Manifest, load_manifest
from m3ae.data.samples import Columns, Sample, SampleDataset, Visit, evenly
from m3ae.data.sets import MixedDataset, SampleStream
from m3ae.metrics.aggregation import MeanMetrics
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.gaussians import beta_schedule
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.modalities import KINDS, BatchOptions
from m3ae.models.modeling import M3AEModel
from m3ae.tasks.data import check_used_splits, is_filled, open_data, read_column, rows_left_out, training_samples
from m3ae.tasks.finetuning import in_main_process, prefixed
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.models import (
    build_tokenizer,
    merged_config,
    new_config,
    read_image_encoder,
    saved_config,
    start_encoders,
    with_image_options,
)
from m3ae.training.config import GenerationRun
from m3ae.transfer.image_encoders import resize_images
from m3ae.transfer.text_encoders import load_tokenizer

if TYPE_CHECKING:
    from m3ae.evaluation.probes import ProblemReader

FITTED_SAMPLES = 10_000  # training samples, at most, that the prior is fitted on
LEARNT_ROWS = 20_000  # training rows, at most, that probes and classifiers of the evaluation learn from
FIGURE_ROWS = 64  # rows, at most, that figures are made of


class Generation:
    """The latent head on the modalities of `model.overrides.latent`, whose names are columns of the prepared folder.

    Args:
        config: The run.
        model: The model.
        tokenizer: The tokenizer of the model's texts; None without texts.
        columns: Modality → columns, where they have other names than the modality; see `Columns`.
    """

    def __init__(
        self,
        config: GenerationRun,
        model: M3AEForGeneration,
        tokenizer: PreTrainedTokenizerBase | None,
        columns: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.modalities = model.latent_head.modalities
        self.columns = Columns(self.modalities, columns)
        self.train_dataset = self.open_training()
        self.manifest = self.read_manifest()
        self.problem_reader: ProblemReader | None = None
        if config.generation.problems is not None:
            from m3ae.evaluation import probes  # needs scikit-learn, which is slow to import

            self.problem_reader = probes.ProblemReader(config.data.path, config.generation.problems)
        options = BatchOptions(tokenizer, config.data.max_text_length)
        self._evaluation_collator = Collator(self.modalities, options)
        options = replace(options, augmentation=config.data.augmentation, training=True)
        rate, hidden = config.generation.missing_rate, model.latent.condition  # cvae learns nothing without its target
        self._training_collator = Collator(self.modalities, options, missing_rate=rate, hidden=hidden)

    @classmethod
    def from_config(cls, config: GenerationRun, *, for_training: bool = True) -> Self:
        """Open the data, and build tokenizer and model or load them; to evaluate, the saved model stays as it is."""
        open_data(config, for_training=for_training)
        if not for_training:
            config = config.model_copy(update={"model": config.model.model_copy(update={"overrides": {}})})
        task = cls(config, *(_load(config) if config.model.path is not None else _build(config)))
        return check_used_splits(task) if for_training else task

    def check(self, split: str) -> None:
        """Check that a split can be trained or measured on; ValueError if its rows or the options do not fit."""
        path, folders = self.config.data.path, [self.config.data.path]
        if split == "train":
            folders = [prepared.path for prepared in self.config.data.sets]
            for name in self.modalities:
                if not any(is_filled(folder, split, [name]) for folder in folders):
                    raise ValueError(
                        f"latent.modalities.{name}: no training row of {path} has this modality; leave the modality "
                        "out, or choose another column"
                    )
        elif not is_filled(path, split, self.model.latent.experts):
            experts = ", ".join(self.model.latent.experts)
            raise ValueError(f"no row of {path}, {split}, has a modality that z is inferred from: {experts}")
        for name, modality in self.modalities.items():
            modality.check_column(partial(read_column, folders, split, name), training=split == "train")
        options = self.config.generation.text_options
        if options and not any(modality.config.decoder == "autoregressive" for modality in self.modalities.values()):
            raise ValueError(
                f"text_options: got {', '.join(options)}, which only the decoder autoregressive has, and "
                "no text of the model has this decoder; leave them out"
            )

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Join training samples into the keyword arguments of the model."""
        return {"modalities": self._training_collator(samples)}

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return β at an optimiser step, and how far training is if a discriminator has to know."""
        latent = self.model.latent
        beta = beta_schedule(step, self.config.training.max_steps, latent.beta_warmup, latent.beta)
        inputs = {"beta": torch.tensor(beta)}
        if self.model.latent_head.discriminators:
            inputs["progress"] = torch.tensor(step / self.config.training.max_steps)
        return inputs

    def open_training(self) -> SampleDataset | MixedDataset | SampleStream:
        """Open the training split of all sets."""
        data = self.config.data
        if not (data.streaming or data.also) and data.weight == 1:
            return self.training_rows
        return training_samples(data, [self.columns] * len(data.sets), self.config.training.seed)

    @cached_property
    def training_rows(self) -> SampleDataset:
        """The training split of the main set, by index."""
        return self.dataset("train")

    def dataset(self, split: str) -> SampleDataset:
        """Open a split with the model's modalities."""
        data = self.config.data
        limit = data.max_validation_samples if split == "validation" else None
        left_out = rows_left_out(data)[data.path] if split == "train" else ()
        return SampleDataset(data.path, split, self.columns, limit=limit, left_out=left_out)

    def read_manifest(self) -> Manifest:
        """Return the description of the prepared folder."""
        return load_manifest(self.config.data.path)

    def batches(self, dataset: SampleDataset, indices: Sequence[int]) -> Iterator[Batch]:
        """Return samples of a split, complete, in batches."""
        return self._collated(dataset[Visit(int(index), seed=0)] for index in indices)

    def _collated(self, samples: Iterable[Sample]) -> Iterator[Batch]:
        size, iterator = self.config.evaluation.batch_size or self.config.training.batch_size, iter(samples)
        while batch := list(islice(iterator, size)):
            yield self._evaluation_collator(batch)

    def evaluate(self, model: M3AEForGeneration, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return on a split, in nats a sample, the negative ELBO with β = 1 (`loss`) and its terms.

        The terms are `kl` and `nll_<modality>`, the latter over the samples that have the modality. Every component
        of the posterior counts, and no weight does.
        """
        dataset, sums = self.dataset(split), MeanMetrics()
        share = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        for batch in self.batches(dataset, share):
            batch = send_to_device(batch, accelerator.device)
            elbo = model.elbo(batch)
            sums.add("loss", -elbo.bound)
            sums.add("kl", elbo.kl.sum(-1))
            for name, value in elbo.log_likelihood.items():
                sums.add(f"nll_{name}", -value, batch[name]["present"])
        return sums.compute()

    def report(self, model: M3AEForGeneration, accelerator: Accelerator) -> dict[str, float]:
        """Fit the prior, and measure validation and test: names are `<split>/<metric>`."""
        if self.config.generation.prior_components:
            self.fit_prior(model, accelerator)
        metrics: dict[str, float] = {}
        for split in ("validation", "test"):
            if self.has(split):
                metrics |= prefixed(split, self.evaluate(model, accelerator, split))
        return metrics

    def has(self, split: str) -> bool:
        """Return whether the data have a split."""
        return split in self.manifest.splits

    def measure(self, model: M3AEForGeneration, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Write a split's evaluation and figures into the output folder, in the main process; return main numbers."""
        return prefixed(split, in_main_process(accelerator, lambda: self._write_report(model, split)))

    def _write_report(self, model: M3AEForGeneration, split: str) -> dict[str, float]:
        # scikit-learn and matplotlib are slow to import, and only a report needs them.
        from m3ae.evaluation.figures import plot_missing_rates
        from m3ae.evaluation.latent import LatentEvaluator
        from m3ae.evaluation.report import write_report
        from m3ae.evaluation.texts import TextEvaluator, Texts

        dataset, folder, options = self.dataset(split), self.config.output_dir, self.config.generation
        train, seed = self.training_rows, self.config.training.seed
        learnt = evenly(len(train), LEARNT_ROWS)
        problems = None
        if self.problem_reader is not None:
            problems = self.problem_reader.read([train.ids[row] for row in learnt], split, dataset.ids)
        batches = self.batches(train, learnt), self.batches(dataset, range(len(dataset)))
        evaluator = LatentEvaluator(model, *batches, options, seed, problems)
        report, lines = evaluator.evaluate(), list[dict[str, Any]]()
        if self.tokenizer is not None and options.text_rows:
            texts = {}
            for name in _texts(model.latent):
                of_training = train.texts_of(name)
                texts[name] = Texts([of_training[row] for row in learnt], dataset.texts_of(name))
            decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True)
            writer = TextEvaluator(evaluator, decode, options.text_rows, seed)
            reports, lines = writer.evaluate(texts, dataset.ids)
            report = replace(report, texts=reports)
        folder.mkdir(parents=True, exist_ok=True)
        self._draw(model, dataset, folder)
        plot_missing_rates(folder / "missing_rates.png", report.missing_rate)
        write_report(folder, f"{self.config.model.path} on {split}", report, lines)
        return report.main_metrics()

    def fit_prior(self, model: M3AEForGeneration, accelerator: Accelerator) -> None:
        """Fit the prior on training samples, the same in every process."""
        if isinstance(self.train_dataset, SampleStream):
            count = min(len(self.train_dataset), FITTED_SAMPLES)
            batches = self._collated(islice(self.train_dataset.share(0, 1), count))
        else:
            indices = evenly(len(self.training_rows), FITTED_SAMPLES)
            count, batches = len(indices), self.batches(self.training_rows, indices)
        batches = (send_to_device(batch, accelerator.device) for batch in batches)
        components = min(self.config.generation.prior_components, count)
        generator = torch.Generator(accelerator.device).manual_seed(self.config.training.seed)
        kind, seed = self.config.generation.prior_kind, self.config.training.seed
        model.fit_prior(batches, components, generator, seed, kind)

    def save(self, model: M3AEForGeneration, folder: Path, metrics: dict[str, float]) -> None:
        """Write model, tokenizer and model card in hub format."""
        model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        write_model_card(folder, self.config, model, self.manifest, metrics)

    def illustrate(self, model: M3AEForGeneration, folder: Path) -> list[Path]:
        """Draw what is generated from what, what latent dimensions do, and samples of the priors."""
        split = "validation" if self.has("validation") else "train"
        return self._draw(model, self.dataset(split), folder)

    def _draw(self, model: M3AEForGeneration, dataset: SampleDataset, folder: Path) -> list[Path]:
        """Draw the figures of the first rows that have all modalities; none if there is no such row."""
        from m3ae.evaluation.figures import LatentFigures

        rows = (row for row in range(len(dataset)) if dataset[Visit(row, seed=0)].present.all())
        complete = list(islice(rows, FIGURE_ROWS))
        if not complete:
            return []
        batch = send_to_device(next(self.batches(dataset, complete)), model.device)
        return LatentFigures(model, batch, self.config.training.seed, self.tokenizer).draw_all(folder)


def _texts(latent: LatentConfig) -> list[str]:
    """Return the names of the modalities that are texts."""
    return [name for name, options in latent.typed_modalities.items() if KINDS[options.kind].is_text]


def _build(config: GenerationRun) -> tuple[M3AEForGeneration, PreTrainedTokenizerBase | None]:
    """Build a new model, and the tokenizer of its texts."""
    overrides, tokenizer, init = dict(config.model.overrides), None, config.model.init
    image_encoder = read_image_encoder(init)
    modalities, reader = LatentConfig(**overrides["latent"]).typed_modalities, M3AEConfig.named("tiny")
    texts = {name: KINDS[one.kind](name, one, reader) for name, one in modalities.items() if KINDS[one.kind].is_text}
    if texts:
        columns = [Columns(texts)] * len(config.data.sets)
        tokenizer = build_tokenizer(config, lambda: training_samples(config.data, columns, 0).texts())
        model_config = new_config(config, tokenizer, image_encoder, overrides)
    else:
        model_config = M3AEConfig.named(config.model.size, **with_image_options(image_encoder, overrides))
    set_seed(config.training.seed)
    model = M3AEForGeneration(model_config)
    start_encoders(model, image_encoder, init.text_encoder)
    return model, tokenizer


def _load(config: GenerationRun) -> tuple[M3AEForGeneration, PreTrainedTokenizerBase | None]:
    """Load a saved model: one of this class, or any whose trunk the experts start from."""
    path = config.model.path
    assert path is not None
    saved = saved_config(path)
    wanted, image_size = merged_config(saved, config.model.overrides)
    if not isinstance(wanted.latent, LatentConfig):
        raise ValueError(f"model.overrides.latent: {path!r} has no latent head, and the config names none.")
    assert isinstance(saved.image_config, M3AEImageConfig) and isinstance(wanted.image_config, M3AEImageConfig)
    saved_size, anew = saved.image_config.image_size, config.model.from_scratch
    if image_size != saved_size and saved.latent is not None and not anew:
        raise ValueError(
            f"model.overrides.image_config.image_size: got {image_size} for a latent head that has learnt images of "
            f"{saved_size} px; it keeps their size."
        )
    set_seed(config.training.seed)
    if anew:
        wanted.image_config.image_size = image_size
        model = M3AEForGeneration(wanted)
    elif image_size == saved_size:
        model = M3AEForGeneration.from_pretrained(path, config=wanted)
    else:
        model = _resized(path, wanted, image_size)
    return model, load_tokenizer(path) if _texts(wanted.latent) else None


def _resized(path: str, config: M3AEConfig, image_size: int) -> M3AEForGeneration:
    """Load the trunk of a saved model of the configuration's image size, to be used at another one."""
    trunk = M3AEModel.from_pretrained(path, config=config)
    resize_images(trunk, image_size)
    assert isinstance(config.image_config, M3AEImageConfig)
    config.image_config.image_size = image_size
    model = M3AEForGeneration(config)
    used = model.base_model.state_dict().keys()
    model.base_model.load_state_dict({name: value for name, value in trunk.state_dict().items() if name in used})
    return model
