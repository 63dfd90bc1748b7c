"""Settings, checkpoints, images, prepared folders and the processor as targets of `tests.faults.fuzz`."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from hypothesis import strategies as st
from PIL import Image

from m3ae import M3AEForPreTraining
from m3ae.data.collate import TrunkCollator
from m3ae.data.prepared import MANIFEST, load_manifest
from m3ae.data.samples import SampleDataset, Visit, trunk_columns
from m3ae.data.sets import SampleStream, StreamedSet, UnreadableShardError
from m3ae.data.tokenizer import train_tokenizer
from m3ae.files import CHECKSUMS, write_checksums
from m3ae.images.files import UnreadableImageError, load_image
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.options import dotted_keys
from m3ae.training.checkpoint import choose_checkpoint, list_checkpoints, load_moments, load_weights
from m3ae.training.config import RUNS, ConfigError, dump_config, load_config
from m3ae.training.loop import train
from m3ae.training.trained_model import prepare_model
from m3ae.transfer.checkpoints import CheckpointError
from m3ae.transfer.released import read_released
from tests.data.small_folder import picture, stored, write_splits
from tests.faults.harms import PIECES, FileHarm, Folder, Harm, Target, damage, file_harms, harms
from tests.images.test_dicom import RAMP, write
from tests.models.tiny import tiny_config, tiny_of
from tests.training.toy import ToyTask, toy_config
from tests.transfer.released import released_by_others, save

QUICKSTART = Path(__file__).parents[2] / "configs" / "pretrain" / "quickstart.yaml"


SHORT = """task: pretraining
output_dir: runs/quickstart # where to
data:
  path: "data/phantoms"
  prepare: {name: phantom, num_studies: 1000}
  image_columns: [frontal, lateral]
  crop_scale: &range [0.9, 1.0]
  also: [{path: data/more, text_column: [question, answer], weight: 0.5}]
model: {size: tiny, overrides: {itc_weight: 1.0, text_config: {hidden_size: 128}}}
optimizer: {lr: 1e-3, betas: *range, lr_multipliers: {heads: 5}}
training: {max_steps: 300, batch_size: 32, mixed_precision: auto, max_hours: null, compile: false}
"""


def config(folder: Path) -> Target:
    """A YAML file and overrides: a configuration that can be written and read again, or a ConfigError."""
    short = SHORT.encode()
    full = dump_config(load_config(QUICKSTART)).encode()
    keys = sorted({key for run in RUNS.values() for key in dotted_keys(run)} - {"output_dir"})
    keys += ["a.b", "data.prepare.name", "model.overrides.image_config", "model.overrides.latent.modalities.a"]
    pieces = [piece for piece in PIECES if len(piece) < 999]
    values = st.one_of(st.sampled_from(pieces).map(lambda piece: piece.decode("latin-1")), st.text(max_size=8))
    overrides = st.lists(st.builds("{}={}".format, st.sampled_from(keys), values), max_size=3)
    path, again = folder / "config.yaml", folder / "again.yaml"

    def check(case: tuple[bytes, list[Harm], list[str]]) -> str:
        contents, damages, assignments = case
        for harm in damages:
            contents = damage(contents, harm)
        path.write_bytes(contents)
        try:
            loaded = load_config(path, assignments)
        except ConfigError as error:
            assert str(error).strip()
            return "ConfigError"
        again.write_text(dump_config(loaded), encoding="utf-8")
        assert load_config(again) == loaded
        return "read"

    files = st.sampled_from([*[short] * 15, full])
    small = harms.filter(lambda harm: len(harm.piece) < 999)  # the parser of YAML is slow
    return Target(st.tuples(files, st.lists(small, max_size=2), overrides), check)


def checkpoint(folder: Path) -> Target:
    """A damaged newest checkpoint is passed over; what its checksums do not show is a ValueError that names it."""
    run, task = folder / "run", ToyTask()
    settings = toy_config(run)
    train(settings, task)
    older, newest = list_checkpoints(run)
    files = Folder(newest)
    accelerator = Accelerator(cpu=True)
    trained = prepare_model(task.model, settings, accelerator)

    def check(case: tuple[list[FileHarm], bool]) -> str:
        damages, with_new_checksums = case
        with files.harmed(damages), restored(newest / CHECKSUMS):
            if with_new_checksums and (newest / "state.json").is_file() and (newest / CHECKSUMS).is_file():
                (newest / CHECKSUMS).unlink()
                write_checksums(newest, last="state.json")
            chosen, remarks = choose_checkpoint(accelerator, [older, newest], folder)
            assert chosen is not None and (chosen == newest) == (not remarks), remarks
            try:
                state, _ = load_weights(chosen, task.model, settings, process=0)
                load_moments(accelerator, chosen, trained)
            except ValueError as error:
                assert type(error) is ValueError and newest.name in str(error), repr(error)
                assert chosen == newest and with_new_checksums
                return "ValueError"
            assert isinstance(state.step, int)
            return "newest" if chosen == newest else "the one before"

    return Target(st.tuples(file_harms, st.booleans()), check)


@contextmanager
def restored(file: Path) -> Iterator[None]:
    contents = file.read_bytes() if file.is_file() else None
    yield
    if contents is not None:
        file.write_bytes(contents)


def released(folder: Path) -> Target:
    """A checkpoint in the published format: read, or refused by a CheckpointError."""
    content = released_by_others(tiny_of(M3AEForPreTraining))
    needed = (
        "vision_encoder.visual.conv1.",
        "token_type_embeddings.",
        "multi_modal_language_layers.0.attention.self.",
    )
    state = {name: value for name, value in content["state_dict"].items() if any(part in name for part in needed)}
    content["state_dict"] = {name: value[..., :2].clone() for name, value in state.items()}
    (folder / "released").mkdir()
    save(folder / "released", content)
    (folder / "released" / "config.json").write_text(json.dumps({"roberta": {"num_attention_heads": 4}, "vision": {}}))
    files = Folder(folder / "released")

    def check(case: list[FileHarm]) -> str:
        with files.harmed(case):
            try:
                read_released(folder / "released" / "m3ae.ckpt")
            except CheckpointError as error:
                assert str(folder) in str(error)
                return "CheckpointError"
            return "read"

    return Target(file_harms, check)


def images(folder: Path) -> Target:
    """Image files of every kind: an 8-bit image, or an UnreadableImageError."""
    place = folder / "images"
    place.mkdir()
    small = picture(0, (24, 20))
    for name in ("a.jpg", "a.png", "a.gif", "a.bmp", "a.tif", "a.webp"):
        small.save(place / name)
    small.convert("P").save(place / "palette.png", transparency=3)
    Image.fromarray(np.asarray(small).astype(np.uint16) * 99).save(place / "wide.png")
    Image.fromarray(np.asarray(small).astype(np.float32)).save(place / "float.tif")
    small.convert("CMYK").save(place / "cmyk.jpg")
    write(place / "a.dcm", RAMP[:16, :16], bits=12, WindowCenter="1500", WindowWidth="900")
    write(place / "rgb.dcm", np.zeros((8, 8, 3), np.uint8))
    contents = {path.name: path.read_bytes() for path in sorted(place.iterdir())}

    def check(case: tuple[str, str, list[Harm]]) -> str:
        name, called, damages = case
        damaged = contents[name]
        for harm in damages:
            damaged = damage(damaged, harm)
        path = place / (called or name)
        path.write_bytes(damaged)
        try:
            image = load_image(path)
        except UnreadableImageError as error:
            assert path.name in error.detail
            return error.reason
        assert image.mode in ("L", "RGB") and min(image.size) > 0
        image.tobytes()
        return "read"

    names = st.sampled_from([*contents])
    return Target(
        st.tuples(names, st.sampled_from(["", "", "other.png", "x.dcm"]), st.lists(harms, max_size=3)), check
    )


def prepared_files(path: Path) -> Folder:
    rows = [
        {"id": f"r{n}", "image": stored(picture(n, (24, 20)), "JPEG"), "text": [f"Text {n}."], "question": "Where?"}
        for n in range(5)
    ]
    write_splits(path, train=rows, validation=rows[:2])
    return Folder(path)


def manifest(folder: Path) -> Target:
    """The manifest: read and printable, or ValueError or FileNotFoundError."""
    files = prepared_files(folder / "prepared")

    def check(case: list[Harm]) -> str:
        contents = files.contents[files.path / MANIFEST]
        for harm in case:
            contents = damage(contents, harm)
        (files.path / MANIFEST).write_bytes(contents)
        try:
            found = load_manifest(files.path)
        except ValueError as error:
            assert type(error) is ValueError and str(files.path) in str(error), repr(error)
            return "ValueError"
        str(found), found.rejected_share(), found.to_json()
        return "read"

    return Target(st.lists(harms, min_size=1, max_size=3), check)


def prepared(folder: Path) -> Target:
    """Rows read by index: samples with images that decode, or ValueError or FileNotFoundError naming the folder."""
    files, cache = prepared_files(folder / "prepared"), folder / "cache"
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()

    collate = trunk_collator()

    def read() -> None:
        dataset = SampleDataset(files.path, "train", trunk_columns(["image"], "text"))
        collate([dataset[Visit(n, seed=n)] for n in range(len(dataset))])

    return Target(file_harms, lambda case: try_to_read(read, files, case, cache))


def stream(folder: Path) -> Target:
    """Rows read as a stream, in the same way."""
    files = prepared_files(folder / "prepared")
    datasets.disable_progress_bars()

    collate = trunk_collator()

    def read() -> None:
        samples = SampleStream([StreamedSet(files.path, trunk_columns(["image"], "text"))], seed=0).share(0, 1)
        collate([next(samples) for _ in range(4)])

    return Target(file_harms, lambda case: try_to_read(read, files, case))


def trunk_collator() -> TrunkCollator:
    return TrunkCollator(trunk_modalities(tiny_config()), BatchOptions(train_tokenizer(["Text."], 300), 8))


def try_to_read(read: Callable[[], None], files: Folder, case: list[FileHarm], cache: Path | None = None) -> str:
    with files.harmed(case):
        try:
            read()
        except (ValueError, FileNotFoundError) as error:
            assert type(error) in (ValueError, FileNotFoundError, UnreadableShardError), repr(error)
            assert str(files.path) in str(error) or str(error).startswith("row 'r"), error
            return type(error).__name__
        finally:
            if cache is not None:
                shutil.rmtree(cache, ignore_errors=True)
        return "read"


MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBa", "I;16")


def processor(folder: Path) -> Target:
    """Images of any mode and size with any text give finite tensors; anything else a ValueError or TypeError."""
    size = 32
    whole = M3AEProcessor(M3AEImageProcessor.for_size(size), train_tokenizer(["There is an effusion."], 300))
    sides = st.one_of(st.integers(1, 70), st.sampled_from([1, 100]))
    pictures = st.builds(
        lambda mode, width, height, seed: Image.frombytes(mode, (width, height), _noise(mode, width, height, seed)),
        st.sampled_from(MODES),
        sides,
        st.integers(1, 70),
        st.integers(0, 9),
    )
    arrays = st.builds(
        lambda shape, kind, value: np.full(shape, value).astype(kind),
        st.lists(st.integers(0, 40), max_size=4).map(tuple),
        st.sampled_from([np.uint8, np.float32, np.int64, np.bool_]),
        st.sampled_from([0, 1, 255]),
    )
    texts = st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=40),
        st.sampled_from(PIECES).map(lambda p: p.decode("utf-8", "replace")),
    )
    strange = st.one_of(
        st.none(), st.integers(), st.binary(max_size=4), st.floats(), st.sampled_from(["no such file.png", "\ud800"])
    )
    good = st.integers(1, 3).flatmap(
        lambda count: st.tuples(
            st.just(True),
            st.lists(pictures, min_size=count, max_size=count),
            st.lists(texts, min_size=count, max_size=count),
        )
    )
    any_images = st.one_of(pictures, arrays, strange, st.lists(st.one_of(pictures, arrays, strange), max_size=2))
    any_texts = st.one_of(texts, strange, st.lists(st.one_of(texts, strange), max_size=2))

    def check(case: tuple[bool, Any, Any]) -> str:
        is_good, given_images, given_texts = case
        try:
            batch = whole(
                images=given_images,
                text=given_texts,
                padding=True,
                truncation=True,
                max_length=16,
                return_tensors="pt",
            )
        except (ValueError, TypeError) as error:
            assert not is_good, (repr(error), [(image.mode, image.size) for image in given_images])
            return type(error).__name__
        if "pixel_values" in batch:
            assert batch["pixel_values"].shape[1:] == (3, size, size) and batch["pixel_values"].isfinite().all()
        if is_good:
            assert len(batch["pixel_values"]) == len(batch["input_ids"]) == len(given_texts)
        return "good" if is_good else "taken"

    return Target(st.one_of(good, st.tuples(st.just(False), any_images, any_texts)), check)


def _noise(mode: str, width: int, height: int, seed: int) -> bytes:
    length = len(Image.new(mode, (width, height)).tobytes())
    return np.random.default_rng(seed).bytes(length)


TARGETS: dict[str, Callable[[Path], Target]] = {
    target.__name__: target for target in (config, checkpoint, released, images, manifest, prepared, stream, processor)
}
