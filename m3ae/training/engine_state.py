"""What is trained, whichever engine keeps it: weights and moments, whole, under the names of the bare model.

DDP has them whole in every process; FSDP2 and ZeRO keep a part in each. Files hold whole tensors, shared out among the
processes that write them, so that any engine and any number of processes can read them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import fsdp2_canonicalize_names
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

MODEL, OPTIMIZER = "model", "optimizer"
MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_SHARDS = 64  # more files at once are hard on a shared file system


class EngineState:
    """Weights and moments of a prepared model and its AdamW.

    What is kept in parts is put together when it is read, by all processes: they have to read the same in the same
    order.

    Args:
        model: The bare model.
        optimizer: Its optimiser, prepared.
        whole_model: Its like as it was before the engine: of these shapes is what is read. The model itself if None.
    """

    def __init__(
        self, model: nn.Module, optimizer: AcceleratedOptimizer, whole_model: nn.Module | None = None
    ) -> None:
        self.parameters: dict[str, nn.Parameter] = fsdp2_canonicalize_names(dict(model.named_parameters()))
        self._shapes = {name: parameter.shape for name, parameter in (whole_model or model).named_parameters()}
        inner: Any = optimizer.optimizer
        self._zero: Any = inner if hasattr(inner, "optimizer") else None  # DeepSpeed's, around AdamW
        self._state: dict[Tensor, dict[str, Tensor]] = (inner.optimizer if self._zero else inner).state

    @torch.no_grad()
    def weight(self, name: str) -> Tensor:
        """Return a parameter."""
        parameter, shape = self.parameters[name], self._shapes[name]
        if hasattr(parameter, "ds_id"):  # ZeRO-3
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().clone().view(shape)
        return _whole(parameter.detach()).view(shape)

    def moments(self, name: str) -> dict[str, Tensor]:
        """Return `exp_avg`, `exp_avg_sq` and `step` of a parameter; nothing if it never had a gradient."""
        parameter, shape = self.parameters[name], self._shapes[name]
        own = self._state.get(parameter, {})
        if not (own or (self._zero is not None and self._state and parameter.requires_grad)):
            return {}
        if self._zero is None:
            return {key: _whole(own[key]).view(shape) for key in MOMENTS} | {"step": own["step"]}
        from deepspeed.utils import safe_get_full_optimizer_state

        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None and not mapping.optim_fragment:
            self._link_zero()
        step = next(iter(self._state.values()))["step"].clone()  # ZeRO counts for all at once
        return {key: safe_get_full_optimizer_state(parameter, key).view(shape) for key in MOMENTS} | {"step": step}

    @torch.no_grad()
    def set_moments(self, stored: Mapping[str, Tensor]) -> None:
        """Put back what `moments` returned, by `<key>/<name>`; a parameter that is not there has had no gradient."""
        names = [name for name in self.parameters if f"step/{name}" in stored]
        if self._zero is not None and names:
            self._start_zero(max(stored[f"step/{name}"] for name in names))
        for name in names:
            values = {key: stored[f"{key}/{name}"] for key in (*MOMENTS, "step")}
            if self._zero is None:
                parameter = self.parameters[name]
                self._state[parameter] = {key: _like(parameter, values[key]) for key in MOMENTS}
                self._state[parameter]["step"] = values["step"].to(parameter.device)
            else:
                self._set_zero(self.parameters[name], values)

    @torch.no_grad()
    def copy_weights(self, model: nn.Module) -> None:
        """Copy the parameters into a whole model of the same kind."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weight(name))

    def _start_zero(self, step: Tensor) -> None:
        """Make ZeRO's state, which otherwise appears at the first step."""
        third_stage = hasattr(self._zero, "fp32_partitioned_groups_flat")
        flats = self._zero.fp32_partitioned_groups_flat if third_stage else self._zero.single_partition_of_fp32_groups
        for flat in flats:
            self._state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS} | {
                "step": step.to(flat.device, copy=True)
            }
        if not third_stage:
            self._link_zero()

    def _link_zero(self) -> None:
        """Link parameters with their moments: ZeRO-1 and -2 do so when those of the first group alone exist."""
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def _set_zero(self, parameter: Any, values: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for key in MOMENTS:
            value = values[key].to(parameter.device)
            if not hasattr(parameter, "ds_id"):
                safe_set_full_optimizer_state(parameter, value, key)
                continue
            size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()  # of a part, the last one padded
            padding = size * torch.distributed.get_world_size() - value.numel()
            part = nn.functional.pad(value.flatten(), (0, padding)).narrow(0, rank * size, size)
            safe_set_local_optimizer_state(parameter, part, key)


def write_shard(state: EngineState, buffers: Mapping[str, Tensor], folder: Path, process: int, processes: int) -> None:
    """Write this process's share of weights and moments; every process has to call it.

    Args:
        state: What is trained.
        buffers: Further tensors of the model, the same in every process.
        folder: Where to write.
        process: This process.
        processes: Their number.
    """
    shards = min(processes, MAX_SHARDS)
    weights: dict[str, Tensor] = dict(buffers) if process == 0 else {}
    moments: dict[str, Tensor] = {}
    for number, name in enumerate(state.parameters):
        weight, values = state.weight(name), state.moments(name)
        if number % shards == process:
            weights[name] = weight.cpu().contiguous()
            moments |= {f"{key}/{name}": value.cpu().contiguous() for key, value in values.items()}
    if process < shards:
        part = f"-{process + 1:05d}-of-{shards:05d}" if shards > 1 else ""
        save_file(weights, folder / f"{MODEL}{part}.safetensors", metadata={"format": "pt"})
        save_file(moments, folder / f"{OPTIMIZER}{part}.safetensors")


class Shards(Mapping[str, Tensor]):
    """The tensors of `<kind>.safetensors`, or of `<kind>-….safetensors`, read one by one.

    Raises:
        ValueError: There are none.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._files: dict[str, Any] = {}
        paths = sorted(folder.glob(f"{kind}*.safetensors"))
        if not paths:
            raise ValueError(f"{folder} has no {kind}.safetensors: it is no checkpoint of this version of m3ae")
        for path in paths:
            file = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    value = value.to(parameter.device).view(parameter.shape)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
