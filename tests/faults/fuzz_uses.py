"""Models, indexes, runs, functions and commands as targets of `tests.faults.fuzz`."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from PIL import Image

from m3ae import M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.data.fingerprints import FINGERPRINTS, load_fingerprints
from m3ae.inference import load_model, open_collection, open_index, predict, read_images, reconstruct, word_attention
from m3ae.training.loop import train
from m3ae.transfer.checkpoints import CheckpointError, read_tensors
from tests.data.small_folder import picture
from tests.faults.fuzz_commands import Refused, invoke
from tests.faults.fuzz_targets import prepared_files
from tests.faults.harms import FileHarm, Folder, Target, file_harms
from tests.tasks.tiny_finetuning import save_model
from tests.training.toy import ToyTask, toy_config


def documented(work: Callable[[], object], files: Folder, *errors: type[Exception]) -> Callable[[list[FileHarm]], str]:
    """Return a check: with damaged files, work ends well, or by one of some errors, which says something."""

    def check(case: list[FileHarm]) -> str:
        with files.harmed(case), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                work()
            except errors as error:
                assert type(error) in errors and str(error).strip(), repr(error)
                return type(error).__name__
            return "done"

    return check


def model(folder: Path) -> Target:
    """A saved model: loaded, or a ValueError."""
    path = Path(save_model(folder / "model", M3AEForPreTraining))
    return Target(file_harms, documented(lambda: load_model(path, [M3AEForPreTraining]), Folder(path), ValueError))


def index(folder: Path) -> Target:
    """A search index: used, or built again, or an error that says that the folder holds something else."""
    images, place = folder / "images", folder / "index"
    images.mkdir()
    for number in range(3):
        picture(number, (32, 32)).save(images / f"{number}.png")
    path = save_model(folder / "model", M3AEForPreTraining, itc_weight=1.0)
    loaded, processor = load_model(path, [M3AEForPreTraining])
    collection = open_collection(images)
    expected = open_index(loaded, processor, collection, place).find("a text")

    def search() -> None:
        assert open_index(loaded, processor, collection, place).find("a text") == expected

    files = Folder(place)
    check = documented(search, files, ValueError, IsADirectoryError)

    def checked(case: list[FileHarm]) -> str:
        ending = check(case)
        for file, content in files.contents.items():  # what was built again holds other times
            file.write_bytes(content)
        return ending

    return Target(file_harms, checked)


def run(folder: Path) -> Target:
    """The records of a run, shown by the command: its output, or status 2 and a message."""
    path = folder / "run"
    train(toy_config(path, max_steps=2), ToyTask())
    for name in ("checkpoints", "model", "best", "figures"):
        shutil.rmtree(path / name, ignore_errors=True)
    return Target(file_harms, documented(lambda: invoke(["run", "show", str(path)]), Folder(path), Refused))


def torchscript(folder: Path) -> Target:
    """Files of tensors: read, or a ValueError."""
    place = folder / "tensors"
    place.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 3)).save(place / "script.pt")
    torch.save({"model": {"weight": torch.zeros(3)}}, place / "state.pt")

    def read() -> None:
        for path in sorted(place.iterdir()):
            read_tensors(path)

    return Target(file_harms, documented(read, Folder(place), ValueError, CheckpointError))


def fingerprints(folder: Path) -> Target:
    """Fingerprints of a prepared folder: used, or made again."""
    files, prints = prepared_files(folder / "prepared"), folder / "prints"
    load_fingerprints(files.path, 1)
    prints.mkdir()
    copy = Path(shutil.copy(files.path / FINGERPRINTS, prints))

    def load() -> None:
        if copy.is_file():
            shutil.copy(copy, files.path)
        assert len(load_fingerprints(files.path, 1)["train"].ids) == 5

    return Target(file_harms, documented(load, Folder(prints)))


STRANGE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.integers(-2, 3),
    st.floats(),
    st.binary(max_size=3),
    st.text(max_size=5),
    st.sampled_from([10**30, "", " ", "\ud800", [], (), {}, [None], "x" * 2000]),
)


def functions(folder: Path) -> Target:
    """Functions with strange arguments: a result, or a documented error."""
    answering, processor = load_model(
        save_model(folder / "answering", M3AEForQuestionAnswering, id2label={0: "yes", 1: "no"}),
        [M3AEForQuestionAnswering],
    )
    masked, _ = load_model(save_model(folder / "masked", M3AEForPreTraining), [M3AEForPreTraining])
    image = Image.new("L", (32, 32))
    calls: dict[str, Callable[[Any], object]] = {
        "model of predict": lambda value: predict(value, [image], "Why?"),
        "images of predict": lambda value: predict((answering, processor), value, "Why?"),
        "an image of predict": lambda value: predict((answering, processor), [value], "Why?"),
        "texts of predict": lambda value: predict((answering, processor), [image], value),
        "top_k of predict": lambda value: predict((answering, processor), [image], "Why?", top_k=value),
        "text of word_attention": lambda value: word_attention(answering, processor, image, value),
        "image of word_attention": lambda value: word_attention(answering, processor, value, "Why?"),
        "paths of read_images": read_images,
        "path of load_model": lambda value: load_model(value, [M3AEForPreTraining]),
        "images of reconstruct": lambda value: reconstruct(masked, processor, value, ["A text."]),
        "texts of reconstruct": lambda value: reconstruct(masked, processor, [image], value),
        "mask_ratio of reconstruct": lambda value: reconstruct(masked, processor, [image], ["A."], mask_ratio=value),
        "seed of reconstruct": lambda value: reconstruct(masked, processor, [image], ["A."], seed=value),
    }

    def check(case: tuple[str, Any]) -> str:
        name, value = case
        try:
            calls[name](value)
        except (ValueError, TypeError) as error:
            assert str(error).strip(), repr(error)
            return type(error).__name__
        return "done"

    return Target(st.tuples(st.sampled_from([*calls]), STRANGE), check)


USES: dict[str, Callable[[Path], Target]] = {
    target.__name__: target for target in (model, index, run, torchscript, fingerprints, functions)
}
