import importlib.util
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from m3ae.training import engine
from m3ae.training.run_folder import RunFolder
from m3ae.training.trained_model import choose_attention

from ..models.tiny import tiny_batch, tiny_model
from .toy import toy_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@pytest.fixture
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that `accelerate launch` sets for a config."""
    monkeypatch.chdir(ROOT)
    command = ["--config_file", f"configs/accelerate/{name}.yaml", "--main_process_port", "0", "scripts/train.py"]
    found: list[Namespace] = []
    for launcher in ("deepspeed_launcher", "multi_gpu_launcher"):
        monkeypatch.setattr(launch, launcher, found.append)
    launch.launch_command(launch.launch_command_parser().parse_args(command))
    (arguments,) = found
    assert arguments.num_processes == 8
    made = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    for variable in made.keys() - os.environ.keys():
        monkeypatch.setenv(variable, made[variable])


def build(tmp_path: Path, **training: object) -> None:
    engine.build_accelerator(toy_config(tmp_path, **training), RunFolder(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("names", [["ddp", "fsdp2"], ["zero1", "zero2", "zero3"]], ids=["torch", "zero"])
def test_engines_train_as_one_process(tmp_path, names):
    if "zero1" in names and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.engines", str(tmp_path), *names],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in names] == names


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, 6),
        ({"OMP_NUM_THREADS": "2"}, 5),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "8"}, 1),
    ],
    ids=["alone", "as the user says", "of a launcher", "more processes than cores"],
)
def test_a_process_on_a_cpu_takes_its_share_of_the_cores(monkeypatch, variables, threads):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)  # as OpenMP has read them
        engine.prepare_cpu(Namespace(device=torch.device("cpu")))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_configs(path, monkeypatch):
    launched(path.stem, monkeypatch)
    assert f"accelerate launch --config_file configs/accelerate/{path.name} -m m3ae train base" in path.read_text()
    if path.stem == "fsdp2":
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (
            2,
            True,
            False,
        )
    elif path.stem != "ddp":
        plugin = DeepSpeedPlugin()
        assert f"zero{plugin.zero_stage}" == path.stem and not plugin.zero3_init_flag


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_reads_its_configs(stage, monkeypatch, tmp_path):
    config = pytest.importorskip("deepspeed.runtime.config", exc_type=ImportError)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    launched(f"zero{stage}", monkeypatch)
    settings = engine._deepspeed(toy_config(tmp_path, mixed_precision="bf16")).deepspeed_config
    settings = json.loads(json.dumps(settings).replace('"auto"', "6").replace("Infinity", "1000"))
    settings["bf16"] = settings["fp16"] = {"enabled": False}
    read = config.DeepSpeedConfig(settings)
    assert read.zero_optimization_stage == stage and read.gradient_clipping == 1.0
    assert (read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (3, 2)
    assert read.torch_autocast_enabled


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FSDP_VERSION": "2"}, "accelerate has no FSDP for 1 processes on cpu and would go on without.*use DDP"),
        ({"FSDP_VERSION": "1"}, "fsdp_version: got 1, expected 2"),
        ({"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: got true"),
    ],
)
def test_fsdp_that_would_not_do_what_it_says_is_refused(tmp_path, monkeypatch, fresh_state, variables, message):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


@pytest.mark.parametrize(
    ("settings", "training", "message"),
    [
        ({"bf16": {"enabled": True}}, {}, "the DeepSpeed config has bf16: leave this out"),
        ({"optimizer": {"type": "Adam"}}, {}, "the DeepSpeed config has optimizer: leave this out"),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            {},
            "offload_param: got a device, expected none",
        ),
        ({}, {"mixed_precision": "fp16"}, "training.mixed_precision: got fp16, expected bf16 or no with DeepSpeed"),
        ({}, {"ema_decay": 0.9}, "training.ema_decay: got 0.9, expected null with DeepSpeed"),
    ],
)
def test_a_deepspeed_config_that_contradicts_the_run_is_refused(tmp_path, monkeypatch, settings, training, message):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, **settings}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **training)


def test_deepspeed_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"it is not installed; pip install 'm3ae\[deepspeed\]'"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("device", "precision", "implementation"),
    [("cpu", "bf16", "eager"), ("cpu", "no", "sdpa"), ("cuda", "bf16", "sdpa")],
)
def test_attention_is_plain_in_bf16_on_a_cpu(device: str, precision: str, implementation: str) -> None:
    model, batch = tiny_model().eval(), tiny_batch()
    expected = model(**batch).loss
    choose_attention(model, torch.device(device), precision)
    chosen = {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}
    assert chosen == {implementation}
    torch.testing.assert_close(model(**batch).loss, expected, atol=1e-5, rtol=1e-5)
    choose_attention(torch.nn.Linear(1, 1), torch.device(device), precision)
