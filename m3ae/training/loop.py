"""The one training loop, for every task. It knows nothing of modalities: a task brings model, samples and metrics."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device, set_seed
from tqdm import tqdm

from m3ae.files import complete_folder, is_full_disk, only_process, restore
from m3ae.training import TrainingStopped
from m3ae.training.batches import micro_batches
from m3ae.training.checkpoint import TrainingState, choose_checkpoint, load_moments, load_weights, save_checkpoint
from m3ae.training.config import RunConfig
from m3ae.training.engine import build_accelerator, device_name, prepare_cpu, settle_precision
from m3ae.training.gradient_cache import beside_others, check_contrast
from m3ae.training.progress import LossMeter, MetricsLog, Progress, format_metrics, mean_losses, read_metrics
from m3ae.training.run_folder import RunFolder
from m3ae.training.safety import (
    StopRequest,
    Watchdog,
    dead_processes_explained,
    out_of_memory_explained,
    with_smaller_batches,
)
from m3ae.training.task import Task
from m3ae.training.trained_model import prepare_model


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient was not finite for `training.max_skipped_steps` steps in a row."""


def train(config: RunConfig, task: Task[Any], *, resume: Path | bool = False) -> dict[str, Any]:
    """Train a task's model and leave everything about the run in `config.output_dir`.

    Args:
        config: The run.
        task: Model, samples and metrics. Every process builds the same model from the same seed.
        resume: True continues from the newest checkpoint in the output folder, if there is one; a path from that
            checkpoint or run folder. The continuation is exact: same weights, bit for bit, on a CPU. A damaged
            checkpoint is left out, and the one before it is taken.

    Returns:
        `step`, `skipped_steps`, `best` (value of the best metric), and the task's report, named `<split>/<metric>`.

    Raises:
        BlockingIOError: Another process is training in the output folder.
        ChildProcessError: A process that loads data has died.
        ConnectionError: Another process of the run has ended.
        FileExistsError: The output folder holds another run.
        FileNotFoundError: `resume` names no checkpoint.
        MemoryError: The device has too little memory; the message names the settings to change.
        NonFiniteLossError: Too many steps in a row had a non-finite loss or gradient.
        OSError: The disk is full and the final model has no room; a checkpoint or metrics without room are a warning.
        KeyboardInterrupt: Ctrl-C was pressed a second time.
        TrainingStopped: A first Ctrl-C, SIGTERM, SIGUSR1, the end of the launcher or `training.max_hours` ended the
            run early; all processes have finished the same step and written a checkpoint.
        ValueError: Configuration, data, model or checkpoint do not fit together, or all checkpoints are damaged.
    """
    folder = RunFolder(config.output_dir)
    checkpoints = folder.starting_points(resume)
    config = settle_precision(config, checkpoints)
    accelerator = build_accelerator(config, folder)
    prepare_cpu(accelerator)
    with (
        only_process(folder.root) if accelerator.is_main_process else nullcontext(),
        StopRequest(config.training.max_hours) as request,
        dead_processes_explained(),
    ):
        try:
            loop = _TrainingLoop(config, task, accelerator, request, checkpoints)
            if resume and not checkpoints:
                loop.announce(f"no checkpoint in {folder.root}: starting afresh")
            loop.take_steps()
            return loop.finish()
        finally:
            accelerator.end_training()


class _TrainingLoop:
    """State and steps of `train`; made, it stands where the newest checkpoint that can be used has left it."""

    def __init__(
        self,
        config: RunConfig,
        task: Task[Any],
        accelerator: Accelerator,
        request: StopRequest,
        checkpoints: Sequence[Path],
    ) -> None:
        self.config, self.task, self.accelerator, self.request = config, task, accelerator, request
        self.folder = RunFolder(config.output_dir)
        set_seed(config.training.seed, device_specific=True)

        checkpoint, remarks = choose_checkpoint(accelerator, checkpoints, self.folder.checkpoints)
        self.announce(*remarks)
        self.state = TrainingState()
        if checkpoint:
            self.state, changes = load_weights(checkpoint, task.model, config, accelerator.process_index)
            self.announce("\n  ".join([f"resuming from {checkpoint}", *changes]))
        if config.training.contrast_over == "step":
            check_contrast(task.model)
        self.trained = prepare_model(task.model, config, accelerator)
        if checkpoint:
            load_moments(accelerator, checkpoint, self.trained)

        self.log_file = self.open_log(checkpoint)  # in the main process alone
        self.progress = Progress(config.training, self.state.step, accelerator.is_main_process)
        self.watchdog = Watchdog(config.training.max_step_minutes, accelerator)
        self.stopping = False
        self.meter = LossMeter()
        self.last_finite: dict[str, torch.Tensor] = {}
        self.seconds, self.steps_since_log = 0.0, 0

    def open_log(self, checkpoint: Path | None) -> MetricsLog | None:
        """Record this start of the run, from a checkpoint if there is one, and open the files that metrics go to."""
        root = self.folder.root
        options = {"wandb": {"dir": str(root), "name": root.name}, "mlflow": {"run_name": root.name}}
        self.accelerator.init_trackers(self.config.task, init_kwargs=options)
        if not self.accelerator.is_main_process:
            return None
        for folder in (self.folder.best, self.folder.model, self.folder.figures):
            restore(folder)
        device, processes = device_name(self.accelerator.device), self.accelerator.num_processes
        facts = {"step": self.state.step, "device": device, "num_processes": processes, "checkpoint": checkpoint}
        self.announce(*self.folder.describe_run(self.config, **facts))
        return MetricsLog(self.folder.metrics, self.state.log_lines)

    def take_steps(self) -> None:
        """Take the optimiser steps that are left, with logs, validations and checkpoints in between."""
        settings = self.config.training
        if not self.state.step and settings.validate_every and settings.best_metric != "validation/loss":
            self.validation_metrics()  # a name that no task has must not stop a run that has trained
        batches = self.batches()
        self.trained.model.train()
        with self.progress, self.watchdog:
            while self.state.step < settings.max_steps:
                started = time.perf_counter()
                self.watchdog.begin(self.state.step + 1)
                try:
                    losses, grad_norm = self.accumulate_gradients(batches)
                except MemoryError as error:
                    self.go_on_with_smaller_batches(error)
                    batches = self.batches()
                    continue
                self.update_parameters(losses, grad_norm)
                self.watchdog.end()
                seconds = time.perf_counter() - started
                self.seconds += seconds
                self.progress.add_step(self.state.step, seconds)
                checkpoint_due = self.stopping or self.is_due(settings.checkpoint_every)
                # A checkpoint closes the running means, so that a resumed run logs what an uninterrupted one does.
                if checkpoint_due or self.is_due(settings.log_every):
                    self.log()
                if settings.validate_every and self.is_due(settings.validate_every):
                    self.validate()
                if checkpoint_due:
                    self.checkpoint()
                if self.stopping:
                    self.stop()

    def batches(self) -> Iterator[dict[str, Any]]:
        """Return the micro-batches that are left."""
        task = self.task
        return micro_batches(self.config, task.train_dataset, task.collate, self.accelerator, self.state.step)

    def accumulate_gradients(self, batches: Iterator[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Leave the clipped gradient of one optimiser step; return its mean losses and the norm before clipping."""
        # The rate comes before the gradients: DeepSpeed updates the parameters as soon as it has them.
        self.trained.set_learning_rate(self.state.step)
        losses = []
        with out_of_memory_explained(self.config.training, self.accelerator.device):
            for batch in self.micro_batches_of_step(batches):
                with self.accelerator.accumulate(self.trained.model):
                    self.watchdog.note("computes the loss")
                    with self.accelerator.autocast():
                        output = self.trained.model(**batch)
                    self.watchdog.note("computes gradients, or waits for those of others")
                    self.accelerator.backward(output.loss)
                losses.append({"loss": output.loss, **output.losses})
            return mean_losses(losses), self.trained.clip_gradient(self.config.optimizer.max_grad_norm)

    def micro_batches_of_step(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the arguments of the model for one optimiser step, on the device."""
        settings, accelerator = self.config.training, self.accelerator

        def load() -> dict[str, Any]:
            self.watchdog.note("loads a batch")
            batch = {**next(batches), **self.task.step_inputs(self.state.step)}
            loaded: dict[str, Any] = send_to_device(batch, accelerator.device, non_blocking=True)
            return loaded

        micro_batches = (load() for _ in range(settings.gradient_accumulation_steps))
        if settings.contrast_over == "micro_batch":
            return micro_batches
        return beside_others(self.trained.model, list(micro_batches), accelerator.autocast)

    def update_parameters(self, losses: dict[str, torch.Tensor], grad_norm: torch.Tensor) -> None:
        """Take the optimiser step, or skip it in all processes if the loss or the gradient is not finite in one.

        A request to stop, which may have reached only some of the processes, is shared with all at the same time.
        """
        broken = (~(losses["loss"].isfinite() & grad_norm.isfinite())).float()
        flags = torch.stack([broken, torch.full_like(broken, self.request.reason is not None)])
        skipped, self.stopping = (self.accelerator.reduce(flags, reduction="sum") > 0).tolist()
        values = {**losses, "grad_norm": grad_norm}
        if not skipped:
            self.trained.optimizer.step()
            self.trained.update_average(self.state.step + 1)
            self.last_finite = values
            self.meter.add(values)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # overflow is how fp16 finds its loss scale
        self.trained.optimizer.zero_grad()
        self.state.step += 1
        self.steps_since_log += 1
        self.state.skipped_steps += skipped
        self.state.skipped_in_a_row = self.state.skipped_in_a_row + 1 if skipped else 0
        if skipped:
            self.report_skip(values)

    def go_on_with_smaller_batches(self, error: MemoryError) -> None:
        self.config = with_smaller_batches(self.config, self.accelerator, error)
        self.trained.optimizer.zero_grad()
        size = self.config.training.batch_size
        self.announce(f"warning: {error}; going on with training.batch_size={size}")

    def report_skip(self, values: dict[str, torch.Tensor]) -> None:
        """Announce the values that were not finite, by process; raise after too many skipped steps in a row."""
        broken = [f"{name} = {value.item()}" for name, value in values.items() if not value.isfinite()]
        processes = "; ".join(
            f"process {index}: {', '.join(names)}" for index, names in enumerate(gather_object([broken])) if names
        )
        self.announce(f"step {self.state.step} skipped, not finite: {processes}")
        if self.state.skipped_in_a_row >= self.config.training.max_skipped_steps:
            last = ", ".join(f"{name} = {value.item():.4g}" for name, value in self.last_finite.items()) or "none"
            raise NonFiniteLossError(
                f"loss or gradient not finite in {self.state.skipped_in_a_row} steps in a row, up to step "
                f"{self.state.step} ({processes}); last finite values: {last}. Try a lower optimizer.lr, a longer "
                f"optimizer.warmup, a smaller optimizer.max_grad_norm, or training.mixed_precision=bf16 or no; if it "
                f"happens from the first step on, look for non-finite values in the data"
            )

    def log(self) -> None:
        """Record the means since the last log."""
        means, settings, step = self.meter.pop_means(), self.config.training, self.state.step
        samples = settings.batch_size * settings.gradient_accumulation_steps * self.accelerator.num_processes
        speed = samples * self.steps_since_log / self.seconds
        self.seconds, self.steps_since_log = 0.0, 0
        losses = {name: value for name, value in means.items() if name != "grad_norm"}
        self.progress.show(
            step, {name: f"{value:.4g}" for name, value in losses.items()} | {"samples/s": f"{speed:.1f}"}
        )
        record = {f"training/{name}": value for name, value in losses.items()}
        record |= {name: value for name, value in means.items() if name == "grad_norm"}
        rate = self.trained.learning_rate
        self.record(record | {"lr": rate, "samples_per_second": speed, "skipped_steps": self.state.skipped_steps})

    def validate(self) -> None:
        """Measure the model on the validation split and keep it if it is the best so far."""
        started, settings = time.perf_counter(), self.config.training
        metrics = self.validation_metrics()
        self.record(metrics)
        best = [self.state.best]
        if self.log_file and _is_better(metrics[settings.best_metric], self.state.best, settings.best_mode):
            with self.full_disk_announced("the best model so far"):
                with complete_folder(self.folder.best) as folder:
                    self.task.save(self.trained.whole, folder, metrics)
                best = [metrics[settings.best_metric]]
        self.state.best = broadcast_object_list(best)[0]
        self.progress.add_validation(self.state.step, time.perf_counter() - started)

    def validation_metrics(self) -> dict[str, float]:
        """Return the metrics of the validation split, the one that chooses the best model among them."""
        best = self.config.training.best_metric
        metrics = self.measure(self.task.evaluate, "validation")
        metrics = {f"validation/{name}": float(value) for name, value in metrics.items()}
        if best not in metrics:
            raise ValueError(f"training.best_metric: got {best}, expected one of {', '.join(metrics)}")
        return metrics

    def measure(self, measurement: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
        """Return what the task measures, the course of training left as it was."""
        whole = self.trained.update_whole().eval()
        with fixed_randomness(self.config.training.seed), torch.no_grad():
            metrics = measurement(whole, self.accelerator, *arguments)
        self.trained.model.train()
        return metrics

    def checkpoint(self) -> None:
        if self.log_file:
            self.state.log_lines = self.log_file.lines
        problem = save_checkpoint(self.accelerator, self.folder.checkpoints, self.trained, self.state, self.config)
        if problem:
            step = self.state.step
            self.announce(f"warning: the checkpoint of step {step} was not written: {problem}; going on")

    def stop(self) -> None:
        """End the run early, all processes after the same step."""
        reason = next(reason for reason in gather_object([self.request.reason]) if reason)
        stopped = f"stopped after step {self.state.step} by {reason}"
        self.announce(f"{stopped}; --resume continues from the last checkpoint")
        raise TrainingStopped(stopped)

    def finish(self) -> dict[str, Any]:
        """Measure the last model, write it and the figures, and print the report."""
        from m3ae.figures import draw_losses, save_figure  # matplotlib is slow to import, and only the end needs it

        metrics, whole = self.measure(self.task.report), self.trained.whole
        self.record(metrics)
        if self.log_file:
            with complete_folder(self.folder.model) as folder:
                self.task.save(whole, folder, metrics)
            with complete_folder(self.folder.figures) as folder:
                save_figure(draw_losses(read_metrics(self.folder.metrics)), folder / "losses.png")
                with fixed_randomness(self.config.training.seed), torch.no_grad():
                    self.task.illustrate(whole.eval(), folder)
            self.announce(format_metrics(f"step {self.state.step}", metrics))
            files = self.folder
            self.announce(f"model: {files.model}; pictures: {files.figures}; metrics: {files.metrics}")
        self.accelerator.wait_for_everyone()
        state = self.state
        return {"step": state.step, "skipped_steps": state.skipped_steps, "best": state.best, **metrics}

    def is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.config.training.max_steps

    def record(self, values: dict[str, float]) -> None:
        with self.full_disk_announced("the metrics"):
            if self.log_file:
                self.log_file.write(self.state.step, values)
            self.accelerator.log(values, step=self.state.step)

    @contextmanager
    def full_disk_announced(self, what: str) -> Iterator[None]:
        """Go on without what the disk has no room for."""
        try:
            yield
        except OSError as error:
            if not is_full_disk(error):
                raise
            self.announce(f"warning: {what} at step {self.state.step}: {error}; going on without")

    def announce(self, *messages: str) -> None:
        for message in messages if self.accelerator.is_main_process else ():
            tqdm.write(message)


@contextmanager
def fixed_randomness(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch for a block, and put them back as they were.

    Validation and pictures drawn inside are the same at every call and leave the course of training untouched.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _is_better(value: float, best: float | None, mode: str) -> bool:
    if value != value:  # NaN is never better
        return False
    return best is None or (value < best if mode == "min" else value > best)
