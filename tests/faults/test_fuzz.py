"""A short selection of `tests/faults/fuzz.py`, and what its long runs have once found."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3ae import M3AEForPreTraining
from m3ae.data.collate import TrunkCollator
from m3ae.data.prepared import load_manifest, load_split
from m3ae.data.samples import SampleDataset, trunk_columns
from m3ae.data.sets import SampleStream, StreamedSet, UnreadableShardError
from m3ae.data.sources._digit_files import UnreadableRecordingError, load_recording, read_idx
from m3ae.data.tables import read_csv
from m3ae.data.tokenizer import train_tokenizer
from m3ae.files import CHECKSUMS, write_checksums
from m3ae.images.files import UnreadableImageError, load_image
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.config import ConfigError, load_config
from m3ae.training.loop import train
from m3ae.transfer.checkpoints import CheckpointError
from m3ae.transfer.released import read_released

from ..data.digit_files import write_wav
from ..data.small_folder import picture, stored, write_splits
from ..models.tiny import tiny_config, tiny_of
from ..training.toy import ToyTask, toy_config
from ..transfer.released import released_by_others, save
from .fuzz import ALL, fuzz

TOKENIZER = train_tokenizer(["There is an effusion."], 300)
COLUMNS = trunk_columns(["image"], "text")
SLOW = (
    "checkpoint",
    "prepared",
    "released",
    "stream",
    "digits",
    "model",
    "index",
    "run",
    "functions",
    "commands",
)  # a case takes 10 ms or more


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ALL if name != "commands"])  # which take seconds each
def test_only_documented_errors_come_out(name: str, tmp_path: Path) -> None:
    cases = 4 if name in SLOW else 12
    assert fuzz(name, tmp_path, cases).total() >= cases


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\xff\xfetask: pretraining", "not UTF-8"),
        (b"task: " + b"9" * 5000, "not valid YAML: Exceeds the limit"),
        (b"task: " + b"[" * 500, "not valid YAML: maximum recursion"),
        (b"task: !!bool maybe", "not valid YAML"),
        (b"task: retrieval\ndata: &loop {path: *loop}", "an alias must not stand inside what it names"),
        (b'task: "\\ud800"', "task: got .*, expected one of"),
        (b"task: !!set {a}", "could not determine a constructor"),
        (b"task: retrieval\noptimizer: {lr: .nan}", "optimizer.lr"),
    ],
)
def test_configurations(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(contents)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "config.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"id": f"r{n}", "image": stored(picture(n), "JPEG"), "text": [f"Text {n}."]} for n in range(3)]
    return write_splits(tmp_path / "prepared", train=rows)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"source"', b'"s\xffurce"', "is damaged .*can't decode"),
        (b'"format_version": 1', b'"format_version": ' + b"1" * 5000, "is damaged .*limit"),
        (b'"rows": 3', b'"rows": "3"', "is damaged .*valid integer"),
        (b'"shards": {', b'"shards": ["', "is damaged"),
        (b'"train-0', b'"../train-0', r"names '\.\./train-00000-of-00001.parquet', which is no file in its folder"),
        (b'"texts": 3', b'"texts": NaN', "is damaged"),
    ],
)
def test_manifests(folder: Path, old: bytes, new: bytes, message: str) -> None:
    path = folder / "manifest.json"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(ValueError, match=rf"manifest\.json {message}"):
        load_manifest(folder)


def test_a_shard_that_cannot_be_read_is_named(folder: Path) -> None:
    shard = folder / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet cannot be read: prepare it again"):
        load_split(folder, "train")


@pytest.mark.parametrize("position", [0, 300], ids=["header", "pixels"])
def test_an_image_that_does_not_decode_names_its_row(folder: Path, position: int) -> None:
    shard = folder / "train-00000-of-00001.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    contents = rows[1]["image"]["bytes"]
    rows[1]["image"]["bytes"] = contents[:position] + bytes(99) + contents[position + 99 : -40]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    dataset = SampleDataset(folder, "train", COLUMNS)
    collate = TrunkCollator(trunk_modalities(tiny_config()), BatchOptions(TOKENIZER, 8))
    assert len(collate([dataset.first(0), dataset.first(2)])["pixel_values"]) == 2
    with pytest.raises(ValueError, match=r"row 'r1': its image is damaged \(.*\); prepare the folder again"):
        collate([dataset.first(1)])


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (b"\xff", "config.json is not valid JSON"),
        (b'{"vision": ', "config.json is not valid JSON"),
        (b'{"vision": [1]}', r"config.json: vision is \[1\], expected an object"),
        (b"[]", ""),
    ],
)
def test_settings_beside_released_checkpoints(tmp_path: Path, beside: bytes, message: str) -> None:
    path = save(tmp_path, released_by_others(tiny_of(M3AEForPreTraining)))
    (tmp_path / "config.json").write_bytes(beside)
    with pytest.raises(CheckpointError, match=message) if message else nullcontext():
        read_released(path)


def test_released_checkpoints_that_are_damaged_inside(tmp_path: Path) -> None:
    path = save(tmp_path, released_by_others(tiny_of(M3AEForPreTraining)))
    contents = path.read_bytes()
    disks = contents.rindex(b"PK\x06\x07") + 16  # the number of disks that the archive is on
    for start, end in ((len(contents) // 2, b""), (disks, b"\3")):
        path.write_bytes(contents[:start] + end + contents[start + 1 :])
        with pytest.raises(CheckpointError, match="is not a PyTorch checkpoint, or is damaged"):
            read_released(path)


def test_a_recording_whose_chunk_leaves_the_file(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(600))
    contents = path.read_bytes()
    path.write_bytes(contents[:12] + b"LIST" + (10**6).to_bytes(4, "little") + contents[12:])
    with pytest.raises(UnreadableRecordingError, match=r"not a WAV file: a\.wav"):
        load_recording(path, 8000)


def test_an_index_file_of_three_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\0\x08")
    with pytest.raises(ValueError, match="is no idx file of bytes"):
        read_idx(tmp_path / "x")


def test_a_shard_whose_name_no_file_can_have(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"train-0', b'"' + b"a" * 300))
    with pytest.raises(FileNotFoundError, match=r"lacks a{300}"):
        load_split(folder, "train")
    with pytest.raises(FileNotFoundError, match=r"a{300}.* is missing"):
        StreamedSet(folder, COLUMNS)


def test_text_that_is_not_utf8(folder: Path) -> None:
    shard = folder / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"Text 2.", b"Text 2\x80"))
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet cannot be read: prepare it again"):
        load_split(folder, "train")


def test_a_stream_with_text_that_is_not_utf8(folder: Path) -> None:
    shard = folder / "train-00000-of-00001.parquet"
    contents = shard.read_bytes()
    assert b"Text 2." in contents
    shard.write_bytes(contents.replace(b"Text 2.", b"Text 2\x80"))
    samples = SampleStream([StreamedSet(folder, COLUMNS)], 0).share(0, 1)
    with pytest.raises(UnreadableShardError, match=r"cannot be read .*invalid start byte"):
        [next(samples) for _ in range(3)]


def test_a_table_whose_first_line_is_blank(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\nuid,split\n1,train\n")
    assert read_csv(tmp_path / "a.csv", ["uid"]) == [{"uid": "1", "split": "train"}]


def test_images_that_are_next_to_lines(tmp_path: Path) -> None:
    Image.new("L", (303, 3)).save(tmp_path / "line.png")
    with pytest.raises(UnreadableImageError, match=r"image too narrow: line\.png: 303x3 pixels"):
        load_image(tmp_path / "line.png")
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32), TOKENIZER)
    with pytest.raises(ValueError, match="got an image of 303x3 pixels, expected a longer side of at most 100 times"):
        processor(images=Image.open(tmp_path / "line.png"))
    assert processor(images=Image.new("L", (300, 3)), return_tensors="np")["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "given"), [("images", []), ("images", [[]]), ("text", []), ("images", np.zeros((0, 0, 0, 0), np.uint8))]
)
def test_the_processor_needs_something(name: str, given: object) -> None:
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32), TOKENIZER)
    with pytest.raises(ValueError, match=f"{name}: got an empty {type(given).__name__}, expected at least one"):
        processor(**{name: given})


@pytest.mark.parametrize("part", ["shard-00001-model-00001-of-00003.safetensors", "state.json"])
def test_checkpoints_that_are_wrong_and_have_the_right_checksums(tmp_path: Path, part: str) -> None:
    train(toy_config(tmp_path, max_steps=2), ToyTask())
    (checkpoint,) = list_checkpoints(tmp_path)
    (checkpoint / part).write_bytes(b"\x80" + (checkpoint / part).read_bytes())
    (checkpoint / CHECKSUMS).unlink()
    write_checksums(checkpoint, last="state.json")
    with pytest.raises(ValueError, match=r"step-00000002 cannot be read \(.*another version of m3ae, or was changed"):
        train(toy_config(tmp_path, max_steps=4), ToyTask(), resume=True)
