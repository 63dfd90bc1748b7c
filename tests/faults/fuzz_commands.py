"""Lines of commands as a target of `tests.faults.fuzz`: right ones, with words changed, lost and added."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
from click.testing import CliRunner
from hypothesis import strategies as st

from m3ae import M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.cli import cli
from m3ae.transfer.convert import released_content
from tests.data.small_folder import picture, stored, write_splits
from tests.faults.harms import Target
from tests.models.tiny import tiny_of
from tests.models.tiny_latent import latent_model
from tests.tasks.tiny_finetuning import save_model
from tests.transfer.released import save

TRAIN = (
    "train quickstart output_dir=run data.path=prepared data.prepare=null data.image_columns=[image] "
    "training.max_steps=1 training.batch_size=2 training.validate_every=null training.log_every=1 "
    "tokenizer.vocab_size=300 evaluation.retrieval_pairs=2"
)
LINES = (
    "run show run",
    "summarize run --json sums.json",
    "data check prepared --json twins.json",
    "data show prepared --output rows.png --split train --num-rows 3 --seed 1",
    "train-tokenizer prepared --output output --vocab-size 300 --text-column text",
    "prepare folder --source images --output output --num-workers 1 --quality 90 --min-words 0 --split hash",
    "prepare folder --source table --output output --num-workers 1 --image-column file --text-column note,other",
    "prepare phantom --output output --num-studies 2 --image-size 16 --num-workers 1 --seed 1",
    "search images --model contrastive --text word --index index --top-k 2 --rerank 1",
    "search images --model contrastive --image images/a.png --index index --picture hits.png",
    "embed images --model contrastive --output output --batch-size 2 --shard-range 0:1",
    "embed prepared --model contrastive --output vectors.npy --image-columns image --text-column text",
    "reconstruct --model masked --image images/a.png --text word --output a.png --seed 3 --mask-ratio 0.5",
    "predict answering images --question Why? --top-k 2 --output answers.csv --batch-size 2",
    "predict answering prepared --split train --json",
    "zero-shot --model contrastive --image images/a.png --class a --class b=word --template {} --rerank 1",
    "zero-shot --model contrastive --data prepared --split train --label-column question --class a --class b",
    "convert --checkpoint released/m3ae.ckpt --output output",
    "convert --checkpoint masked --output back.ckpt --reverse",
    "export --model masked --output output --encoder image",
    "generate --model latent --output output --samples 2 --temperature 0.5 --seed 3",
    "evaluate run/config.yaml --split validation --output output",
    "init prepared --minutes 0.01",
    TRAIN.replace("=run ", "=output "),
    "train run/config.yaml --resume",
    "env",
    "app --model absent --port 0 --split test",
)


class Refused(Exception):
    """A command has ended with status 2 and a message."""


def invoke(arguments: list[str]) -> str:
    """Run a command; raise `Refused` for status 2 with a message, and what the command raises for a traceback."""
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code
    if result.exit_code == 2:
        assert result.stderr.strip(), arguments
        raise Refused(result.stderr)
    return "done"


def commands(folder: Path) -> Target:
    """A line with up to three words changed, lost or added: its work, or status 2 and a message."""
    put_back = make_files(folder)
    files = [*("masked", "images", "prepared", "loop", "absent", "images/a.png", "run", "run/config.yaml", "released")]
    words = st.one_of(
        st.sampled_from([*files, "", " ", "-1", "0", "1", str(10**30), "nan", "x=y", "folder", "train", "\ud800"]),
        st.sampled_from(sorted({word for line in LINES for word in line.split()})),
        st.text(st.characters(codec="utf-8", exclude_characters="\0/~"), max_size=6),
    )
    ways = st.sampled_from(["replace", "replace", "insert", "lose"])
    changes = st.lists(st.tuples(ways, st.integers(0, 99), words), max_size=3)

    def check(case: tuple[str, list[tuple[str, int, str]]]) -> str:
        arguments = case[0].split()
        for way, number, word in case[1]:
            place = number % (len(arguments) + 1)
            arguments[place : place + (way != "insert")] = [] if way == "lose" else [word]
        if "phantom" in arguments and str(10**30) in arguments:
            return "left out"  # as many phantoms as that are no mistake, but take their time
        put_back()
        with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return invoke(arguments)
            except Refused:
                return "refused"

    return Target(st.tuples(st.sampled_from(LINES), changes), check)


def make_files(folder: Path) -> Callable[[], None]:
    """Write what the lines name; return a function that puts all files back as they are now."""
    datasets.config.HF_DATASETS_CACHE = folder.with_name(f"{folder.name}.cache")
    save_model(folder / "masked", M3AEForPreTraining)
    save_model(folder / "contrastive", M3AEForPreTraining, itc_weight=1.0)
    save_model(folder / "answering", M3AEForQuestionAnswering, id2label={0: "yes", 1: "no"})
    latent_model().save_pretrained(folder / "latent")
    for name in ("images", "table", "released"):
        (folder / name).mkdir()
    save(folder / "released", released_content(tiny_of(M3AEForPreTraining)))
    for name in ("images/a.png", "table/b.png"):
        picture(ord(name[0]), (32, 32)).save(folder / name)
    (folder / "table" / "rows.csv").write_text("file,note,other,split\nb.png,one two three,four,train\n")
    rows = [
        {"id": f"r{n}", "image": stored(picture(n, (24, 20)), "JPEG"), "text": [f"Text {n}."], "question": "Where?"}
        for n in range(7)
    ]
    write_splits(folder / "prepared", train=rows[:5], validation=rows[5:])
    (folder / "loop").symlink_to("loop")
    with contextlib.chdir(folder):
        invoke(TRAIN.split())
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in files}
    kept = {*folder.rglob("*")}

    def put_back() -> None:
        for path in {*folder.rglob("*")} - kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path, content in files.items():
            if not path.is_file() or path.stat().st_mtime_ns != times[path]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                times[path] = path.stat().st_mtime_ns

    return put_back
