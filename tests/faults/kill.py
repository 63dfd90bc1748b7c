"""Kill runs at random moments, resume them, and compare what they end with to what one that was never killed does.

    python -m tests.faults.kill FOLDER --run toy --kills 60 --seed 0

`toy` trains in milliseconds a step and writes a checkpoint after each second one, `m3ae` is a tiny M3AE on phantoms,
`stream` is that reading its shards as a stream, `sweep` a grid of two of them, `prepare` prepares phantoms, and
`convert` and `export` write a tiny model in other formats. Half of the kills come after a random time; the other half
at a random file that Python opens, renames or deletes, which is where a write is cut in two. After each kill,
everything in the run's folder that has its final name has to be readable. After each run that came to its end, a line
of JSON says how many kills there have been, and where they fell.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch._dynamo  # as an optimiser does: the children inherit it
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import m3ae.figures  # noqa: F401 (as a run does at its end)
from m3ae import M3AEForPreTraining
from m3ae.data.prepare import prepare
from m3ae.data.sources import load_source
from m3ae.files import file_sha256, find_damage
from m3ae.inference.export import save_programs
from m3ae.inference.inputs import load_any
from m3ae.tasks import task_class
from m3ae.tasks.sweep import plan_sweep, write_sweep
from m3ae.tasks.sweep import run_sweep as sweep_runs
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.config import load_config
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from m3ae.transfer.convert import convert, released_content
from tests.models.tiny import tiny_of
from tests.tasks.tiny_finetuning import save_model
from tests.training.toy import ToyTask, toy_config
from tests.transfer.released import save

QUICKSTART = Path(__file__).parents[2] / "configs" / "pretrain" / "quickstart.yaml"
SPARED_AFTER = 8  # kills, so that a run comes to its end on a machine that has become slower
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def run_toy(folder: Path) -> None:
    train(toy_config(folder, max_steps=60, checkpoint_every=2), ToyTask(), resume=True)


def run_m3ae(folder: Path, *others: str) -> None:
    config = load_config(QUICKSTART, [*short(folder), *others])
    train(config, task_class(config.task).from_config(config), resume=True)


def short(folder: Path) -> list[str]:
    data = folder.parent / "phantoms"
    settings = ["training.max_steps=12", "training.batch_size=4", "training.validate_every=6"]
    settings += ["training.checkpoint_every=3", "training.log_every=1", "evaluation.retrieval_pairs=4"]
    return [*settings, f"data.path={data}", "data.prepare.num_studies=40", f"output_dir={folder}"]


def run_stream(folder: Path) -> None:
    run_m3ae(folder, "data.streaming=true")


def run_sweep(folder: Path) -> None:
    write_sweep(folder, [*sweep_runs(plan_sweep(QUICKSTART, ["training.seed=0,1"], short(folder)))])


def run_convert(folder: Path) -> None:
    if not (source := folder.parent / "released").exists():
        source.mkdir()
        save(source, released_content(tiny_of(M3AEForPreTraining)))
    convert(source / "m3ae.ckpt", folder)


def run_export(folder: Path) -> None:
    if not (source := folder.parent / "model").exists():
        save_model(source, M3AEForPreTraining)
    save_programs(load_any(str(source), "cpu")[0], folder)


def run_prepare(folder: Path) -> None:
    prepare("phantom", folder, num_studies=96, image_size=96, num_shards=8, num_workers=1)


RUNS: dict[str, Callable[[Path], None]] = {
    "toy": run_toy,
    "m3ae": run_m3ae,
    "stream": run_stream,
    "sweep": run_sweep,
    "prepare": run_prepare,
    "convert": run_convert,
    "export": run_export,
}


def start(run: Callable[[Path], None], folder: Path, log: Path, file_events: int | None = None) -> int:
    """Run in a child process, which kills itself at that many file events; return its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with log.open("a", encoding="utf-8") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            if file_events is not None:
                die_at(folder, file_events)
            run(folder)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def die_at(folder: Path, file_events: int) -> None:
    left, prefix = file_events, str(folder)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in FILE_EVENTS and str(arguments[0]).startswith(prefix):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def place(folder: Path) -> str:
    """Return what a kill has interrupted, by what it left."""
    if list(folder.glob("checkpoints/*.tmp")):
        return "in a checkpoint"
    if list(folder.glob(".*.incomplete")) or list(folder.glob(".*.replaced")):
        return "while a model or figures were written"
    if list(folder.glob("*.tmp")):
        return "while another file was written"
    if list(folder.glob("*.parquet")):
        return "between shards"
    return "in a step" if (folder / "config.yaml").exists() else "before the start"


def unreadable(folder: Path) -> list[str]:
    """Return what has its final name and cannot be read."""
    found = []
    checkpoints = list_checkpoints(folder)
    found += [f"{path.name}: {problem}" for path in checkpoints if (problem := find_damage(path, last="state.json"))]
    readers: dict[str, Callable[[Path], object]] = {
        "*.yaml": lambda path: yaml.safe_load(path.read_text()),
        "**/*.json": lambda path: json.loads(path.read_text()),
        "**/metrics.jsonl": read_metrics,
        "*.parquet": pq.read_table,
        "**/model*.safetensors": lambda path: safe_open(path, framework="pt").keys(),
        "*.pt2": torch.export.load,
    }
    for pattern, read in readers.items():
        for path in folder.glob(pattern):
            if any(part.startswith(".") or part.endswith(".tmp") for part in path.relative_to(folder).parts):
                continue
            try:
                read(path)
            except Exception as error:
                found.append(f"{path.name}: {error}")
    return found


def result(folder: Path) -> dict[str, object]:
    """Return what has to be the same: metrics and weights of trainings, all other files by their contents."""
    readers: dict[str, Callable[[Path], object]] = {"metrics.jsonl": steps, ".safetensors": weights, ".pt2": program}
    left = {"environment.json", "config.yaml", "README.md", "SHA256SUMS", "state.json"}  # times, folders, order
    return {
        str(path.relative_to(folder)): readers.get(path.name, readers.get(path.suffix, file_sha256))(path)
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in left
        and path.suffix not in (".png", ".pkl")
        and "tfevents" not in path.name
    }


def steps(path: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in read_metrics(path)]


def program(path: Path) -> list[bytes]:
    return [value.detach().numpy().tobytes() for value in torch.export.load(path).state_dict.values()]


def weights(path: Path) -> dict[str, bytes]:
    """Return the bits of each tensor: the metadata before them come in any order."""
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", choices=RUNS, default="toy")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    folder, run, log = options.folder.resolve(), RUNS[options.run], options.folder.resolve() / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if options.run != "toy":  # the children inherit them, whatever happens to their files meanwhile
        load_source("phantom"), task_class("pretraining")
    for name in ("warm-up", "whole"):
        begun = time.perf_counter()
        _, status = os.waitpid(start(run, folder / name, log), 0)
        duration = time.perf_counter() - begun
        assert status == 0, log.read_text()
    expected = result(folder / "whole")
    draw, places, runs = random.Random(options.seed), Counter[str](), 0
    while places.total() < options.kills:
        killed = folder / "killed"
        shutil.rmtree(killed, ignore_errors=True)
        for kills in count():
            at_file = draw.random() < 0.5
            child = start(run, killed, log, draw.randrange(1, 60) if at_file and kills < SPARED_AFTER else None)
            if not at_file and kills < SPARED_AFTER:
                time.sleep(draw.uniform(0, 0.5 * duration))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, log.read_text()
            if status == 0:
                break
            places[place(killed)] += 1
            assert not unreadable(killed), unreadable(killed)
        assert result(killed) == expected, f"{killed} differs from {folder / 'whole'}"
        runs += 1
        print(json.dumps({"run": options.run, "kills": places.total(), "runs": runs, **places}), flush=True)


if __name__ == "__main__":
    main()
