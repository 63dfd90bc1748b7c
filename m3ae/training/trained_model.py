"""The model that a run trains, in the hands of its engine: one process, DDP, FSDP2 or DeepSpeed's ZeRO.

DDP has weights and moments whole in every process; FSDP2 and ZeRO keep a share in each. Files hold them under the
names of the bare model, whoever keeps them, so that any engine and any number of processes can read them.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, fsdp2_canonicalize_names, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel

from m3ae.models.adversarial import PatchDiscriminator
from m3ae.training.config import RunConfig
from m3ae.training.optim import build_optimizer, learning_rate_factor

MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedModel:
    """A model and its AdamW, prepared by the engine; every process has to call each method in the same order.

    Args:
        model: The bare model, which the engine takes apart.
        config: The run.
        accelerator: The engine.

    Attributes:
        model: The model to train.
        optimizer: The optimiser.
        whole: A whole model to measure and to save; `update_whole` gives it the weights that are trained, or their
            average.
        average: Name → average over the steps of a parameter that is trained, as the engine keeps it; empty without
            `training.ema_decay`.
        learning_rate: The rate of the present step, of parameters without a multiplier.
    """

    def __init__(self, model: nn.Module, config: RunConfig, accelerator: Accelerator) -> None:
        choose_attention(model, accelerator.device, config.training.mixed_precision)
        if config.training.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        if config.training.compile:
            model.compile()  # in place: parameter names, and so checkpoints, stay as they are
        self.whole, self._bare, self._accelerator = model, model, accelerator
        divided = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self._ema_decay = config.training.ema_decay
        if divided:
            self.whole = copy.deepcopy(model)
            _make_divisible(model, accelerator)
        elif self._ema_decay is not None:  # the whole model's parameters are the averages; frozen ones are shared
            frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
            self.whole = copy.deepcopy(model, frozen).to(accelerator.device)
        optimizer = build_optimizer(model, config.optimizer)
        self._schedule, self._max_steps = config.optimizer, config.training.max_steps
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self.learning_rate = config.optimizer.lr
        # The data loader stays as it is: its sampler knows the processes, and its position is a pure function of the
        # step. So is the learning rate, which leaves no scheduler to prepare or to save.
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.parameters: dict[str, Any] = fsdp2_canonicalize_names(dict(model.named_parameters()))
        self._shapes = {name: parameter.shape for name, parameter in self.whole.named_parameters()}
        self.average: dict[str, Tensor] = {}
        if self._ema_decay is not None:
            whole = {} if divided else dict(self.whole.named_parameters())
            for name, parameter in self.parameters.items():
                if parameter.requires_grad:
                    self.average[name] = parameter.detach().clone() if divided else whole[name].detach()

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rate of each group for an optimiser step, counted from 0."""
        factor = learning_rate_factor(self._schedule, step, self._max_steps)
        self.learning_rate = self._schedule.lr * factor
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def clip_gradient(self, max_norm: float | None) -> Tensor:
        """Scale the gradient down to a norm, unless that is None, and return the norm () before."""
        norm = self._accelerator.clip_grad_norm_(self.model.parameters(), max_norm or float("inf"))
        return _whole(norm)

    def update_average(self, step: int) -> None:
        """Move the averages towards the weights after an optimiser step, counted from 1."""
        if self._ema_decay is not None:
            update = get_ema_multi_avg_fn(min(self._ema_decay, (1 + step) / (10 + step)))
            weights = [_local(self.parameters[name].detach()) for name in self.average]
            update([_local(average) for average in self.average.values()], weights, step)

    @torch.no_grad()
    def update_whole(self) -> nn.Module:
        """Return the whole model with the weights that are trained, or their average, on the device."""
        if self.whole is not self._bare:
            for name, parameter in self.whole.to(self._accelerator.device).named_parameters():
                average = self.average.get(name)
                parameter.copy_(self.weight(name) if average is None else _whole(average).view(parameter.shape))
            for buffer, current in zip(self.whole.buffers(), self._bare.buffers(), strict=True):
                buffer.copy_(current)
        return self.whole

    def weight(self, name: str) -> Tensor:
        """Return a parameter, whole."""
        return _whole(self.parameters[name].detach()).view(self._shapes[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return this process's weights, buffers, averages and moments; without a gradient there are no moments."""
        tensors, state = self._buffers(), self.optimizer.state
        tensors |= {f"ema/{name}": self._in_shape(name, average) for name, average in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors[name] = self._in_shape(name, parameter.detach())
            if moments := state.get(parameter):
                tensors |= {f"{key}/{name}": self._in_shape(name, moments[key]) for key in MOMENTS}
                tensors[f"step/{name}"] = moments["step"]
        return tensors

    @torch.no_grad()
    def load_moments(self, folder: Path) -> None:
        """Read the averages and the moments; a parameter that the files do not name has had no gradient."""
        stored, tensors = stored_shapes(folder), dict[str, Tensor]()
        averages = {name: average for name, average in self.average.items() if f"ema/{name}" in stored}
        for name, average in averages.items():
            tensors[f"ema/{name}"] = self._in_shape(name, average)
        trained = {name: parameter for name, parameter in self.parameters.items() if f"step/{name}" in stored}
        for name, parameter in trained.items():
            for key in MOMENTS:
                tensors[f"{key}/{name}"] = self._in_shape(name, torch.zeros_like(parameter))
            tensors[f"step/{name}"] = torch.zeros((), device=parameter.device)
        read_tensors(tensors, folder)
        for name, average in averages.items():
            average.copy_(_like(average, tensors[f"ema/{name}"]))
        for name, parameter in trained.items():
            moments = {key: _like(parameter, tensors[f"{key}/{name}"]) for key in MOMENTS}
            self.optimizer.state[parameter] = moments | {"step": tensors[f"step/{name}"]}

    def _buffers(self) -> dict[str, Tensor]:
        parameters = {name for name, _ in self._bare.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in self._bare.state_dict().items() if name not in parameters}

    def _in_shape(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the shape that files hold: a number is a vector for the engine."""
        return tensor if tensor.shape == self._shapes[name] else _whole(tensor).view(self._shapes[name])


class ZeroModel(TrainedModel):
    """A model and its AdamW, prepared by DeepSpeed, which shows what it keeps through `deepspeed.utils`."""

    def __init__(self, model: nn.Module, config: RunConfig, accelerator: Accelerator) -> None:
        super().__init__(model, config, accelerator)
        self._zero: Any = self.optimizer.optimizer
        self._state: dict[Tensor, dict[str, Tensor]] = self._zero.optimizer.state
        self._third_stage = hasattr(self._zero, "fp32_partitioned_groups_flat")

    def clip_gradient(self, max_norm: float | None) -> Tensor:
        """Return the norm () before DeepSpeed clipped the gradient and made the step; infinity if it skipped that."""
        norm = super().clip_gradient(max_norm)
        return torch.tensor(float("inf") if self.optimizer.step_was_skipped else norm, device=self._accelerator.device)

    def weight(self, name: str) -> Tensor:
        """Return a parameter, whole."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([self.parameters[name]]):
            weight: Tensor = self.parameters[name].detach().clone().view(self._shapes[name])
            return weight

    def tensors(self) -> dict[str, Tensor]:
        """Return this process's share of weights, buffers and moments, put together by all processes one by one."""
        self._link_moments()
        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        tensors = self._buffers() if process == 0 else {}
        for number, name in enumerate(self.parameters):
            gathered = {name: self.weight(name)} | self._moments(name)
            if number % processes == process:
                tensors |= {key: value.cpu() for key, value in gathered.items()}
        return tensors

    @torch.no_grad()
    def load_moments(self, folder: Path) -> None:
        """Read the optimiser's moments, parameter by parameter, each whole in every process."""
        stored = stored_shapes(folder)
        names = [name for name in self.parameters if f"step/{name}" in stored]
        steps = {f"step/{name}": torch.zeros(()) for name in names}
        read_tensors(steps, folder)
        if not names:
            return
        for flat in self._flat_partitions():  # DeepSpeed makes these at the first step
            self._state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._state[flat]["step"] = max(steps.values()).to(flat.device, copy=True)
        self._link_moments()
        for name in names:
            moments = {f"{key}/{name}": torch.zeros(self._shapes[name]) for key in MOMENTS}
            read_tensors(moments, folder)
            for key in MOMENTS:
                self._set_moment(self.parameters[name], key, moments[f"{key}/{name}"])

    def _moments(self, name: str) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        parameter = self.parameters[name]
        if not (self._state and parameter.requires_grad):
            return {}
        step = next(iter(self._state.values()))["step"].clone()  # DeepSpeed counts for all parameters at once
        moments = {f"{key}/{name}": safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {key: value.view(self._shapes[name]) for key, value in moments.items()} | {f"step/{name}": step}

    def _set_moment(self, parameter: Any, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(parameter.device)
        if not self._third_stage:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        size, process = parameter.ds_tensor.numel(), self._accelerator.process_index  # the last share is padded
        padding = size * self._accelerator.num_processes - value.numel()
        share = nn.functional.pad(value.flatten(), (0, padding)).narrow(0, process * size, size)
        safe_set_local_optimizer_state(parameter, share, key)

    def _flat_partitions(self) -> list[Tensor]:
        zero = self._zero
        flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._third_stage else zero.single_partition_of_fp32_groups
        )
        return flat

    def _link_moments(self) -> None:
        """Link parameters with their moments, which ZeRO-1 and -2 do when those of the first group alone exist."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self._state and not self._third_stage:
            for group, flat in zip(self._zero.bit16_groups, self._flat_partitions(), strict=True):
                lazy_init_hp_params_optimizer_state(group, flat, self._state)


def prepare_model(model: nn.Module, config: RunConfig, accelerator: Accelerator) -> TrainedModel:
    """Hand a model and its optimiser to the engine; ValueError if this engine cannot train a discriminator."""
    shards = accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
    if shards and any(isinstance(module, PatchDiscriminator) for module in model.modules()):
        raise ValueError(
            "latent.modalities: `adversarial` needs whole parameters in every process; got "
            f"{accelerator.distributed_type.value}, expected one process, or DDP."
        )
    kind = ZeroModel if accelerator.distributed_type == DistributedType.DEEPSPEED else TrainedModel
    return kind(model, config, accelerator)


def choose_attention(model: nn.Module, device: torch.device, precision: str) -> None:
    """Have a model attend by plain products in bf16 on a CPU, where the fused kernel's backward pass is slower."""
    if device.type == "cpu" and precision == "bf16" and isinstance(model, PreTrainedModel):
        model.set_attn_implementation("eager")


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Have a model recompute activations in the backward pass; ValueError if it cannot."""
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):  # of newer, older transformers
        if callable(enable := getattr(model, name, None)):
            enable({"use_reentrant": False})
            return
    raise ValueError(f"training.gradient_checkpointing: got true, but {type(model).__name__} does not support it")


def write_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the tensors that the processes have, each once, as safetensors; all raise what one of them has met."""
    # torch holds a file twice in memory while it writes: a process writes weights, averages and moments one by one.
    numbers = {"exp_avg": 2, "exp_avg_sq": 3, "ema": 4}
    files = {name: numbers.get(name.split("/")[0], 1) for name in gather_object(list(tensors))}
    with _first_failure():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), files, save_distributed=True))


def read_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """Read tensors, whole ones or shares, in place, whichever processes have written them."""
    with _first_failure():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def is_moment(name: str) -> bool:
    """Return whether a tensor of this name is a moment of the optimiser, or the average of a weight."""
    return name.startswith(tuple(f"{key}/" for key in (*MOMENTS, "step", "ema")))


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a folder by name; ValueError if it holds none."""
    stored: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    if not stored:
        raise ValueError(f"{folder} has no weights: it is no checkpoint of this version of m3ae")
    return {name: tuple(tensor.size) for name, tensor in stored.items()}


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raise the error of a process itself, in place of torch's report of all of them."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of one process it need not say so
            yield
    except CheckpointException as report:
        error, _ = next(iter(report.failures.values()))
        raise error from None


def _make_divisible(model: nn.Module, accelerator: Accelerator) -> None:
    """Change what keeps FSDP2 and DeepSpeed from taking a model apart."""
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.ndim:  # neither engine knows numbers
                vector = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
                module.register_parameter(name, vector)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        # The model's list, not what transformers adds to it: the embeddings, which accelerate divides itself.
        layers = getattr(type(model), "_no_split_modules", None) or []
        plugin.transformer_cls_names_to_wrap = sorted(
            {type(module).__name__ for module in model.modules()} & set(layers)
        )


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        vector = value.view(parameter.shape)
        return distribute_tensor(vector, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
