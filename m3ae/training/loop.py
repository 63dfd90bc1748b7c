"""The one training loop, for every task. It knows nothing of modalities: a task brings model, samples and metrics."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device, set_seed
from tqdm import tqdm

from m3ae.files import complete_folder, is_full_disk, only_process, restore
from m3ae.training.checkpoint import TrainingState, choose_checkpoint, load_moments, load_weights, save_checkpoint
from m3ae.training.config import RunConfig
from m3ae.training.engine import (
    build_accelerator,
    choose_attention,
    clip_gradient,
    device_name,
    make_divisible,
    prepare_cpu,
    settle_precision,
    takes_apart,
)
from m3ae.training.engine_state import EngineState
from m3ae.training.interruption import StopRequest, TrainingStopped, stop_request
from m3ae.training.loader import dead_workers_explained, micro_batches
from m3ae.training.memory import enable_gradient_checkpointing, out_of_memory_explained, with_smaller_batches
from m3ae.training.metrics_log import LossMeter, MetricsLog, format_metrics, mean_losses, read_metrics
from m3ae.training.optim import build_optimizer, learning_rate_factor, warmup_steps
from m3ae.training.progress import Progress
from m3ae.training.randomness import fixed_randomness
from m3ae.training.run_folder import RunFolder
from m3ae.training.task import Task
from m3ae.training.watchdog import Watchdog


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient was not finite for `training.max_skipped_steps` steps in a row."""


def train(config: RunConfig, task: Task[Any], *, resume: Path | bool = False) -> dict[str, Any]:
    """Train a task's model and leave everything about the run in `config.output_dir`.

    Args:
        config: The run.
        task: Model, samples and metrics. In every process the same model, built from the same seed.
        resume: True continues from the newest checkpoint in the output folder, if there is one; a path from that
            checkpoint or run folder. The continuation is exact: same weights, bit for bit, on a CPU. A checkpoint
            that has been damaged is passed over for the one before it.

    Returns:
        `step`, `skipped_steps`, `best` (value of the best metric), and the task's report, named `<split>/<metric>`.

    Raises:
        BlockingIOError: Another process is training in the output folder.
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
        stop_request(config.training.max_hours) as request,
    ):
        try:
            loop = _TrainingLoop(config, task, accelerator, folder, request)
            loop.start(checkpoints, looked_for=bool(resume))
            loop.run()
            return loop.finish()
        finally:
            accelerator.end_training()


class _TrainingLoop:
    """State and steps of `train`."""

    def __init__(
        self, config: RunConfig, task: Task[Any], accelerator: Accelerator, folder: RunFolder, request: StopRequest
    ) -> None:
        self.config, self.task, self.accelerator, self.folder = config, task, accelerator, folder
        self.request, self.stopping = request, False
        self.step_inputs: Callable[[int], dict[str, Any]] = getattr(task, "step_inputs", lambda step: {})
        set_seed(config.training.seed, device_specific=True)
        choose_attention(task.model, accelerator.device, config.training.mixed_precision)
        if config.training.gradient_checkpointing:
            enable_gradient_checkpointing(task.model)
        if config.training.compile:
            task.model.compile()  # in place: parameter names, and so checkpoints, stay as they are
        self.state = TrainingState()
        self.meter = LossMeter()
        self.seconds = 0.0
        self.steps_since_log = 0
        self.last_finite: dict[str, torch.Tensor] = {}

    def start(self, checkpoints: Sequence[Path], *, looked_for: bool) -> None:
        """Load the newest checkpoint that can be used, if there are any, and open the records of the run."""
        checkpoint, damaged = choose_checkpoint(self.accelerator, checkpoints, self.folder.checkpoints)
        for remark in damaged:
            self.announce(remark)
        if checkpoint:
            process = self.accelerator.process_index
            self.state, remarks = load_weights(checkpoint, self.task.model, self.config, process)
            self.announce("\n  ".join([f"resuming from {checkpoint}", *remarks]))
        self.prepare()
        if checkpoint:
            load_moments(self.accelerator, checkpoint, self.trained)
        elif looked_for:
            self.announce(f"no checkpoint in {self.folder.root}: starting afresh")
        if self.accelerator.is_main_process:
            for folder in (self.folder.best, self.folder.model, self.folder.figures):
                restore(folder)
            self.folder.describe_run(
                self.config,
                step=self.state.step,
                device=device_name(self.accelerator.device),
                num_processes=self.accelerator.num_processes,
            )
            self.log_file = MetricsLog(self.folder.metrics, self.state.log_lines)
        self.accelerator.init_trackers(
            self.config.task,
            init_kwargs={"wandb": {"dir": str(self.folder.root), "name": self.folder.root.name}},
        )
        settings = self.config.training
        if not checkpoint and settings.validate_every and settings.best_metric != "validation/loss":
            self.validation_metrics()  # a name that no task has must not stop a run that has trained

    def prepare(self) -> None:
        """Hand model and optimiser to the engine."""
        self.whole_model = model = self.task.model
        if takes_apart(self.accelerator):  # then a whole model beside it is what is measured and saved
            self.whole_model = copy.deepcopy(model)
            make_divisible(self.accelerator, model)
        optimizer = build_optimizer(model, self.config.optimizer)
        self.learning_rates = [group["lr"] for group in optimizer.param_groups]
        # The data loader stays as it is: its sampler knows the processes, and its position is a pure function of the
        # step. So is the learning rate, set by `set_learning_rate`, which leaves no scheduler to prepare or to save.
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.trained = EngineState(model, self.optimizer, self.whole_model)

    def run(self) -> None:
        """Take the optimiser steps that are left, with logs, validations and checkpoints in between."""
        settings = self.config.training
        batches = self.batches()
        self.model.train()
        self.progress = Progress(settings, self.state.step, self.accelerator.is_main_process)
        watchdog = Watchdog(settings.max_step_minutes, self.accelerator)
        with self.progress, dead_workers_explained(), watchdog as self.watchdog:
            while self.state.step < settings.max_steps:
                started = time.perf_counter()
                self.watchdog.begin(self.state.step + 1)
                try:
                    with out_of_memory_explained(self.config.training, self.accelerator.device):
                        losses, grad_norm = self.accumulate_gradients(batches)
                except MemoryError as error:
                    self.config = with_smaller_batches(self.config, self.accelerator, error)
                    self.optimizer.zero_grad()
                    self.announce(
                        f"warning: {error}; going on with training.batch_size={self.config.training.batch_size}"
                    )
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
                    started = time.perf_counter()
                    self.validate()
                    self.progress.add_validation(self.state.step, time.perf_counter() - started)
                if checkpoint_due:
                    self.checkpoint()
                if self.stopping:
                    self.stop()

    def batches(self) -> Iterator[dict[str, Any]]:
        """Return the micro-batches that are left."""
        task = self.task
        return micro_batches(self.config, task.train_dataset, task.collate, self.accelerator, self.state.step)

    def finish(self) -> dict[str, Any]:
        """Measure the last model, write it and the figures, and print the report."""
        from m3ae.figures import draw_losses, save_figure  # matplotlib is slow to import, and only the end needs it

        metrics = self.measure(self.task.report)
        self.record(metrics)
        if self.accelerator.is_main_process:
            with complete_folder(self.folder.model) as folder:
                self.task.save(self.whole_model, folder, metrics)
            with complete_folder(self.folder.figures) as folder:
                save_figure(draw_losses(read_metrics(self.folder.metrics)), folder / "losses.png")
                with fixed_randomness(self.config.training.seed), torch.no_grad():
                    self.task.illustrate(self.whole_model.eval(), folder)
            self.announce(format_metrics(f"step {self.state.step}", metrics))
            self.announce(f"model: {self.folder.model}; pictures: {self.folder.figures}")
        self.accelerator.wait_for_everyone()
        return {
            "step": self.state.step,
            "skipped_steps": self.state.skipped_steps,
            "best": self.state.best,
            **metrics,
        }

    def accumulate_gradients(self, batches: Iterator[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Leave the clipped gradient of one optimiser step; return its mean losses and the norm before clipping."""
        self.set_learning_rate()  # before the gradients: DeepSpeed updates the parameters as soon as it has them
        losses = []
        for _ in range(self.config.training.gradient_accumulation_steps):
            self.watchdog.note("loads a batch")
            batch = {**next(batches), **self.step_inputs(self.state.step)}
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            with self.accelerator.accumulate(self.model):
                self.watchdog.note("computes the loss")
                with self.accelerator.autocast():
                    output = self.model(**batch)
                self.watchdog.note("computes gradients, or waits for those of others")
                self.accelerator.backward(output.loss)
            losses.append({"loss": output.loss, **output.losses})
        limit = self.config.optimizer.max_grad_norm
        return mean_losses(losses), clip_gradient(self.accelerator, self.model, self.optimizer, limit)

    def update_parameters(self, losses: dict[str, torch.Tensor], grad_norm: torch.Tensor) -> None:
        """Take the optimiser step, or skip it in all processes if the loss or the gradient is not finite in one.

        A request to stop, which may have reached only some of the processes, is shared with all at the same time.
        """
        broken = (~(losses["loss"].isfinite() & grad_norm.isfinite())).float()
        flags = torch.stack([broken, torch.full_like(broken, self.request.reason is not None)])
        skipped, self.stopping = (self.accelerator.reduce(flags, reduction="sum") > 0).tolist()
        if not skipped:
            self.optimizer.step()
            self.last_finite = {**losses, "grad_norm": grad_norm}
            self.meter.add(self.last_finite)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # overflow is how fp16 finds its loss scale
        self.optimizer.zero_grad()
        self.state.step += 1
        self.steps_since_log += 1
        self.state.skipped_steps += skipped
        self.state.skipped_in_a_row = self.state.skipped_in_a_row + 1 if skipped else 0
        if skipped:
            self.report_skip({**losses, "grad_norm": grad_norm})

    def set_learning_rate(self) -> None:
        settings = self.config.optimizer
        factor = learning_rate_factor(
            self.state.step,
            max_steps=self.config.training.max_steps,
            warmup_steps=warmup_steps(settings.warmup, self.config.training.max_steps),
            schedule=settings.schedule,
        )
        self.learning_rate = settings.lr * factor
        for group, learning_rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = learning_rate * factor

    def report_skip(self, values: dict[str, torch.Tensor]) -> None:
        """Say which values of which process were not finite; raise if it has happened too often in a row."""
        own = [f"{name} = {value.item()}" for name, value in values.items() if not value.isfinite()]
        found = "; ".join(
            f"process {index}: {', '.join(names)}" for index, names in enumerate(gather_object([own])) if names
        )
        self.announce(f"step {self.state.step} skipped, not finite: {found}")
        if self.state.skipped_in_a_row >= self.config.training.max_skipped_steps:
            last = ", ".join(f"{name} = {value.item():.4g}" for name, value in self.last_finite.items()) or "none"
            raise NonFiniteLossError(
                f"loss or gradient not finite in {self.state.skipped_in_a_row} steps in a row, up to step "
                f"{self.state.step} ({found}); last finite values: {last}. Try a lower optimizer.lr, a longer "
                f"optimizer.warmup, a smaller optimizer.max_grad_norm, or training.mixed_precision=bf16 or no; if it "
                f"happens from the first step on, look for non-finite values in the data"
            )

    def log(self) -> None:
        """Record the means since the last log."""
        means = self.meter.pop_means()
        settings = self.config.training
        samples = settings.batch_size * settings.gradient_accumulation_steps * self.accelerator.num_processes
        speed = samples * self.steps_since_log / self.seconds
        self.seconds, self.steps_since_log = 0.0, 0
        losses = {name: value for name, value in means.items() if name != "grad_norm"}
        shown = {name: f"{value:.4g}" for name, value in losses.items()} | {"samples/s": f"{speed:.1f}"}
        self.progress.show(self.state.step, shown)
        record = {f"training/{name}": value for name, value in losses.items()}
        if "grad_norm" in means:
            record["grad_norm"] = means["grad_norm"]
        self.record(
            record | {"lr": self.learning_rate, "samples_per_second": speed, "skipped_steps": self.state.skipped_steps}
        )

    def validate(self) -> None:
        """Measure the model on the validation split and keep it if it is the best so far."""
        settings, metrics = self.config.training, self.validation_metrics()
        self.record(metrics)
        best = [self.state.best]
        if self.accelerator.is_main_process and _is_better(
            metrics[settings.best_metric], self.state.best, settings.best_mode
        ):
            with self.full_disk_announced("the best model so far"):
                with complete_folder(self.folder.best) as folder:
                    self.task.save(self.whole_model, folder, metrics)
                best = [metrics[settings.best_metric]]
        self.state.best = broadcast_object_list(best)[0]

    def validation_metrics(self) -> dict[str, float]:
        """Return the metrics of the validation split, the one that chooses the best model among them."""
        best, found = self.config.training.best_metric, self.measure(self.task.evaluate, "validation")
        metrics = {f"validation/{name}": float(value) for name, value in found.items()}
        if best not in metrics:
            raise ValueError(f"training.best_metric: got {best}, expected one of {', '.join(metrics)}")
        return metrics

    def measure(self, measurement: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
        """Return what a method of the task measures, the course of training left as it was."""
        if self.whole_model is not self.task.model:
            self.trained.copy_weights(self.whole_model.to(self.accelerator.device))
        self.whole_model.eval()
        with fixed_randomness(self.config.training.seed), torch.no_grad():
            metrics = measurement(self.whole_model, self.accelerator, *arguments)
        self.model.train()
        return metrics

    def checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            self.state.log_lines = self.log_file.lines
        problem = save_checkpoint(
            self.accelerator,
            self.folder.checkpoints,
            self.task.model,
            self.trained,
            self.state,
            self.config,
        )
        if problem:
            self.announce(f"warning: the checkpoint of step {self.state.step} was not written: {problem}; going on")

    def stop(self) -> None:
        """End the run early, all processes after the same step."""
        reason = next(reason for reason in gather_object([self.request.reason]) if reason)
        self.announce(f"stopped after step {self.state.step} by {reason}; --resume continues from the last checkpoint")
        raise TrainingStopped(f"stopped after step {self.state.step} by {reason}")

    def is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.config.training.max_steps

    def record(self, values: dict[str, float]) -> None:
        with self.full_disk_announced("the metrics"):
            if self.accelerator.is_main_process:
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

    def announce(self, message: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(message)


def _is_better(value: float, best: float | None, mode: str) -> bool:
    if value != value:  # NaN is never better
        return False
    return best is None or (value < best if mode == "min" else value > best)
