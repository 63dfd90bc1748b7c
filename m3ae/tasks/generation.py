"""Generation as a task of the training loop: a multimodal VAE on columns of a prepared folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m3ae.data.collate import Batch, Collator
from m3ae.data.prepared import Manifest, load_manifest, load_split
from m3ae.data.samples import ColumnDataset, Columns, Sample, evenly, read_texts
from m3ae.metrics.aggregation import MeanMetrics
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.gaussians import beta_schedule
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.modalities import KINDS, BatchOptions
from m3ae.models.modeling import M3AEModel
from m3ae.tasks.finetuning import in_main_process
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.models import build_tokenizer, check_model, merged_config, new_config, saved_config, start_encoders
from m3ae.tasks.pretraining_data import check_splits, is_filled, prepare_sets, refuse_test_rows
from m3ae.training.batches import Visit
from m3ae.training.config import GenerationRun
from m3ae.transfer.image_encoders import resize_images
from m3ae.transfer.text_encoders import load_tokenizer

if TYPE_CHECKING:
    from m3ae.evaluation.latent import LatentEvaluator
    from m3ae.evaluation.probes import ProblemReader, Problems
    from m3ae.evaluation.report import TextReport

FITTED_SAMPLES = 10_000  # training samples that the prior is fitted on, at most
LEARNT_ROWS = 20_000  # training rows that probes and classifiers of the evaluation learn from, at most
DRAWN_ROWS = 64  # rows of which figures know, at most


class Generation:
    """The latent head on the modalities of `model.overrides.latent`, whose names are columns of the prepared folder.

    Args:
        config: The run.
        model: The model.
        tokenizer: Of its texts; None without texts.
    """

    def __init__(
        self, config: GenerationRun, model: M3AEForGeneration, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.modalities = model.latent_head.modalities
        self.train_dataset = self.dataset("train")
        self.manifest = self.read_manifest()
        self.problem_reader = _open_problems(config)
        options = BatchOptions(tokenizer, config.data.max_text_length)
        self._evaluation_collator = Collator(self.modalities, options)
        options = replace(options, augmentation=config.data.augmentation)
        self._training_collator = Collator(self.modalities, options, missing_rate=config.generation.missing_rate)

    @classmethod
    def from_config(cls, config: GenerationRun, *, for_training: bool = True) -> Generation:
        """Prepare the data if the config says how, and build tokenizer and model, or load them.

        Args:
            config: The run.
            for_training: Whether what the config says about the model counts; otherwise the saved one stays as it is.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, tokenizer and model do not fit together, or a training image is in a held-out split.
        """
        check_model(config)
        prepare_sets(config.data)
        needed = ("train", "validation") if config.training.validate_every else ("train",)
        check_splits(config, needed if for_training else ())
        if not for_training:
            config = config.model_copy(update={"model": config.model.model_copy(update={"overrides": {}})})
        else:
            refuse_test_rows(config.data)
        task = cls(config, *(_load(config) if config.model.path is not None else _build(config)))
        if for_training:
            task.check_splits()
        return task

    def check_splits(self) -> None:
        """Make sure, before the first step, that all splits can be used that the run will use."""
        for split in ("train", "validation", "test"):
            if self.has(split):
                self.check(split)

    def check(self, split: str) -> None:
        """Make sure that a split can be trained or measured on.

        Raises:
            ValueError: No training row has some modality, no row has one that z is inferred from, a label is unknown
                in training, or texts are to be written with options that no decoder has.
        """
        path = self.config.data.path
        if split == "train":
            for name in self.modalities:
                if not is_filled(path, split, [name]):
                    raise ValueError(
                        f"latent.modalities.{name}: no training row of {path} has it, so that nothing of it can be "
                        "learnt; leave the modality out, or choose another column"
                    )
        elif not is_filled(path, split, self.model.latent.experts):
            experts = ", ".join(self.model.latent.experts)
            raise ValueError(f"no row of {path}, {split}, has a modality that z is inferred from: {experts}")
        rows = load_split(path, split)
        for name, modality in self.modalities.items():
            modality.check_column(partial(rows.__getitem__, name), training=split == "train")
        options = self.config.generation.text_options
        if options and not any(own.config.decoder == "autoregressive" for own in self.modalities.values()):
            raise ValueError(
                f"generation.text_options: got {', '.join(options)}, which only the decoder autoregressive has, and "
                "no text of the model has this decoder; leave them out"
            )

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Join training samples into the keyword arguments of the model."""
        return {"modalities": self._training_collator(samples)}

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return β at an optimiser step."""
        latent = self.model.latent
        beta = beta_schedule(step, self.config.training.max_steps, latent.beta_warmup, latent.beta)
        return {"beta": torch.tensor(beta)}

    def dataset(self, split: str) -> ColumnDataset:
        """Open a split with the model's modalities."""
        limit = self.config.data.max_validation_samples if split == "validation" else None
        return ColumnDataset(self.config.data.path, split, Columns.of(self.modalities), limit=limit)

    def read_manifest(self) -> Manifest:
        """Return the description of the prepared folder."""
        return load_manifest(self.config.data.path)

    def batches(self, dataset: ColumnDataset, indices: Sequence[int]) -> Iterator[Batch]:
        """Yield samples of a split, complete, in batches."""
        size = self.config.evaluation.batch_size or self.config.training.batch_size
        for start in range(0, len(indices), size):
            yield self._evaluation_collator(
                [dataset[Visit(int(index), seed=0)] for index in indices[start : start + size]]
            )

    def evaluate(self, model: M3AEForGeneration, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return on a split, in nats a sample, the negative ELBO with β = 1 (`loss`) and its terms.

        They are `kl` and `nll_<modality>`, this over the samples that have the modality. Every component of the
        posterior counts, and no weight does.
        """
        dataset, sums = self.dataset(split), MeanMetrics()
        own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        for batch in self.batches(dataset, own):
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
        splits = [split for split in ("validation", "test") if self.has(split)]
        found = {split: self.evaluate(model, accelerator, split) for split in splits}
        return {f"{split}/{name}": value for split, metrics in found.items() for name, value in metrics.items()}

    def has(self, split: str) -> bool:
        """Return whether the data have a split."""
        return split in self.manifest.splits

    def measure(self, model: M3AEForGeneration, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Write the whole evaluation of a split and its figures into the output folder; return its main numbers.

        The main process works alone.
        """
        found = in_main_process(accelerator, lambda: self._evaluate_everything(model, split))
        return {f"{split}/{name}": value for name, value in found.items()}

    def _evaluate_everything(self, model: M3AEForGeneration, split: str) -> dict[str, float]:
        # scikit-learn and matplotlib are slow to import, and only a report needs them.
        from m3ae.evaluation.figures import plot_missing_rates
        from m3ae.evaluation.latent import LatentEvaluator
        from m3ae.evaluation.report_files import write_report

        dataset, folder = self.dataset(split), self.config.output_dir
        learnt = evenly(len(self.train_dataset), LEARNT_ROWS)
        evaluator = LatentEvaluator(
            model,
            self.batches(self.train_dataset, learnt),
            self.batches(dataset, range(len(dataset))),
            self.config.generation,
            self.config.training.seed,
            self._problems(split, dataset.ids, [self.train_dataset.ids[row] for row in learnt]),
        )
        report = evaluator.evaluate()
        texts, written = self._write_texts(evaluator, dataset, learnt)
        report = replace(report, texts=texts)
        folder.mkdir(parents=True, exist_ok=True)
        self._draw(model, dataset, folder)
        plot_missing_rates(folder / "missing_rates.png", report.missing_rate)
        write_report(folder, f"{self.config.model.path} on {split}", report, written)
        return report.main_metrics()

    def _write_texts(
        self, evaluator: LatentEvaluator, dataset: ColumnDataset, learnt: Sequence[int]
    ) -> tuple[dict[str, TextReport], list[dict[str, Any]]]:
        """Return `TextEvaluator.evaluate` of a model with texts, and nothing of others."""
        from m3ae.evaluation.texts import TextEvaluator, Texts

        decode, names = self._decode_text(), _texts(self.model.latent)
        if decode is None or not self.config.generation.text_rows:
            return {}, []
        training = {name: self.train_dataset.texts_of(name) for name in names}
        texts = {name: Texts([training[name][row] for row in learnt], dataset.texts_of(name)) for name in names}
        writer = TextEvaluator(evaluator, decode, self.config.generation.text_rows, self.config.training.seed)
        return writer.evaluate(texts, dataset.ids)

    def _problems(self, split: str, ids: Sequence[str], learnt: Sequence[str]) -> Problems | None:
        from m3ae.evaluation.probes import Problems

        reader = self.problem_reader
        if reader is None:
            return None
        return Problems(reader.names, reader.targets("train", learnt), reader.targets(split, ids))

    def fit_prior(self, model: M3AEForGeneration, accelerator: Accelerator) -> None:
        """Fit the prior on training samples, the same in every process."""
        indices = evenly(len(self.train_dataset), FITTED_SAMPLES)
        batches = (send_to_device(batch, accelerator.device) for batch in self.batches(self.train_dataset, indices))
        components = min(self.config.generation.prior_components, len(indices))
        generator = torch.Generator(accelerator.device).manual_seed(self.config.training.seed)
        model.fit_prior(batches, components, generator, seed=self.config.training.seed)

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

    def _draw(self, model: M3AEForGeneration, dataset: ColumnDataset, folder: Path) -> list[Path]:
        """Draw the figures of the first rows that have all modalities; none if there is no such row."""
        from m3ae.evaluation.figures import LatentFigures

        complete: list[int] = []
        for index in range(len(dataset)):
            if len(complete) < DRAWN_ROWS and dataset[Visit(index, seed=0)].present.all():
                complete.append(index)
        if not complete:
            return []
        batch = send_to_device(next(self.batches(dataset, complete)), model.device)
        return LatentFigures(model, batch, self.config.training.seed, self.tokenizer).draw_all(folder)

    def _decode_text(self) -> Callable[[Tensor], list[str]] | None:
        if self.tokenizer is None:
            return None
        return partial(self.tokenizer.batch_decode, skip_special_tokens=True)


def _open_problems(config: GenerationRun) -> ProblemReader | None:
    if config.generation.problems is None:
        return None
    from m3ae.evaluation.probes import ProblemReader  # needs scikit-learn, which is slow to import

    return ProblemReader(config.data.path, config.generation.problems)


def _texts(latent: LatentConfig) -> list[str]:
    """Return the names of the modalities that are texts."""
    return [name for name, options in latent.typed_modalities.items() if KINDS[options.kind].is_text]


def _build(config: GenerationRun) -> tuple[M3AEForGeneration, PreTrainedTokenizerBase | None]:
    """Build a new model, and the tokenizer of its texts."""
    given = dict(config.model.overrides)
    latent = given.pop("latent")
    tokenizer, texts = None, _texts(LatentConfig(**latent))
    if texts:
        tokenizer = build_tokenizer(config, lambda: read_texts(config.data.path, "train", texts))
        model_config = new_config(config, tokenizer, given | {"latent": latent})
    else:
        model_config = M3AEConfig.named(config.model.size, **given, latent=latent)
    set_seed(config.training.seed)
    model = M3AEForGeneration(model_config)
    start_encoders(model, config.model.init)
    return model, tokenizer


def _load(config: GenerationRun) -> tuple[M3AEForGeneration, PreTrainedTokenizerBase | None]:
    """Load a saved model: one of this class, or any whose trunk the experts start from.

    Raises:
        ValueError: There is none, it has no latent head and the config names none, or sizes change.
    """
    path = config.model.path
    assert path is not None
    saved = saved_config(path)
    wanted, image_size = merged_config(saved, config.model.overrides)
    if not isinstance(wanted.latent, LatentConfig):
        raise ValueError(f"model.overrides.latent: {path!r} has no latent head, and the config names none.")
    assert isinstance(saved.image_config, M3AEImageConfig) and isinstance(wanted.image_config, M3AEImageConfig)
    own_size, anew = saved.image_config.image_size, config.model.from_scratch
    if image_size != own_size and saved.latent is not None and not anew:
        raise ValueError(
            f"model.overrides.image_config.image_size: got {image_size} for a latent head that has learnt images of "
            f"{own_size} px; it keeps their size."
        )
    set_seed(config.training.seed)
    if anew:
        wanted.image_config.image_size = image_size
        model = M3AEForGeneration(wanted)
    elif image_size == own_size:
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
