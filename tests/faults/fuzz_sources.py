"""The readers of `m3ae prepare` as targets of `tests.faults.fuzz`: each on a small folder in its published layout."""

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from PIL import Image

from m3ae.data.rows import RowFinisher, list_rows
from m3ae.data.sources import load_source
from tests.data import digit_files
from tests.data.folder import jpeg
from tests.data.sources import (
    test_iu_xray,
    test_medicat,
    test_melinda,
    test_mimic_cxr,
    test_roco,
    test_rocov2,
    test_slake,
    test_vqa_med_2019,
    test_vqa_rad,
)
from tests.faults.harms import FileHarm, Folder, Target, file_harms

JSON_LINES = [
    {
        "file_name": "x.png",
        "text": ["One two three.", "Four five six."],
        "labels": ["a", 3],
        "id": 7,
        "split": "train",
    },
    {"file_name": "y.jpg", "text": "Seven eight nine.", "question": "Where?", "answer": "left", "patient": "p1"},
]


def own_folder(path: Path) -> None:
    path.mkdir()
    Image.new("L", (8, 8)).save(path / "x.png")
    (path / "y.jpg").write_bytes(jpeg(9, (8, 8)))
    (path / "train.csv").write_text(
        "Image,Caption,label,patient\nx.png,A chest again.,a; b,1\ny.jpg,One two three.,,2\n"
    )
    (path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in JSON_LINES))


def iu_xray(path: Path) -> None:
    test_iu_xray.make_source(path, splits={"1": "train"})
    for file in (path / "images").iterdir():
        file.write_bytes(jpeg(7, (8, 8)))


def mimic_cxr(path: Path) -> None:
    images = [test_mimic_cxr.image("a", "50000001", "PA"), test_mimic_cxr.image("b", "50000001", "LATERAL")]
    reports = {"50000001": test_mimic_cxr.REPORT}
    labels = {"50000001": {"subject_id": "10000001", "Edema": "1.0", "Fracture": "-1.0"}}
    test_mimic_cxr.make_source(path, images, reports=reports, labels=labels)
    (path / "mimic_cxr_sectioned.csv").write_text("study,impression,findings,last_paragraph,comparison\ns9,a,b,c,d\n")


def roco(path: Path) -> None:
    group = test_roco.make_group(path / "data" / "train" / "radiology")
    (group / "traindata.csv").write_text("id,name,caption\nROCO_00001,PMC11_cro-01-g01.jpg,Axial CT of a lung\n")
    (path / "roco_train_references.jsonl").write_text(json.dumps(test_roco.REFERENCE) + "\n")


def digits(path: Path) -> None:
    def pictures(seed: int, count: int) -> list[tuple[int, np.ndarray]]:
        draw = np.random.default_rng(seed)
        return [(n % 10, 255 * draw.integers(0, 2, (28, 28), dtype=np.uint8)) for n in range(count)]

    digit_files.write_cdb(path / "farsi" / "Test 20000.cdb", pictures(0, 40))
    digit_files.write_kannada(path / "kannada", "test", pictures(1, 40))
    draw = np.random.default_rng(2)
    for digit in range(10):
        for index in (0, 5, 6):
            digit_files.write_wav(path / "spoken" / f"{digit}_jo_{index}.wav", draw.uniform(-0.5, 0.5, 300))


MAKERS: dict[str, Callable[[Path], object]] = {
    "folder": own_folder,
    "iu_xray": iu_xray,
    "medicat": lambda path: test_medicat.make_source(path, test_medicat.RECORD, test_medicat.figure(4)),
    "melinda": lambda path: test_melinda.make_source(path, train=test_melinda.LINE, test=test_melinda.LINE),
    "mimic_cxr": mimic_cxr,
    "roco": roco,
    "rocov2": test_rocov2.make_source,
    "slake": test_slake.make_source,
    "vqa_med_2019": test_vqa_med_2019.make_published,
    "vqa_rad": test_vqa_rad.make_source,
    "digits": digits,
}
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "digits": st.just({"num_train": 10, "num_validation": 10, "num_test": 10}),
    "roco": st.sampled_from([{}, {"references": True, "group": "both", "split_by": "article"}]),
    "slake": st.fixed_dictionaries({"language": st.sampled_from(["en", "both"])}),
    "vqa_rad": st.fixed_dictionaries({"split": st.sampled_from(["published", "image_disjoint"])}),
}


def read_source(name: str, source: Path, options: dict[str, Any]) -> str:
    """List and finish the rows as `prepare` does; return how it ended.

    Only ValueError and FileNotFoundError may come out, and they say where something is wrong. What is kept fits the
    declared columns.
    """
    module = load_source(name)
    if "references" in options:
        options = options | {"references": source}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            listing = list_rows(module.rows(source, **options), [source])
        except (FileNotFoundError, ValueError) as error:
            assert type(error) in (FileNotFoundError, ValueError), repr(error)
            assert str(source) in str(error) or name == "digits", str(error)
            return type(error).__name__
    features = module.FEATURES
    images = [column for column, feature in features.items() if "Image" in type(feature).__name__]
    finisher = RowFinisher(images, [source], shorter_side=16, quality=95, min_words=3)
    kept = [row for rows in listing.rows.values() for row, _ in finisher(rows.between(0, 4)) if row is not None]
    for entry in listing.rejected:
        entry.to_json().encode()
    examples = [features.encode_example({column: row[column] for column in features}) for row in kept]
    pa.Table.from_pylist(examples, schema=features.arrow_schema)
    if hasattr(module, "extras") and kept:
        by_split = {split: [row for row in kept if row["split"] == split] for split in listing.rows}
        json.dumps(module.extras(by_split, {"answers_from": "train"}), ensure_ascii=False).encode()
    return "rows" if kept else "no rows"


def source_target(name: str, folder: Path) -> Target:
    MAKERS[name](folder / name)
    files = Folder(folder / name)

    def check(case: tuple[list[FileHarm], dict[str, Any]]) -> str:
        harms, options = case
        with files.harmed(harms):
            return read_source(name, files.path, options)

    return Target(st.tuples(file_harms, OPTIONS.get(name, st.just({}))), check)


def phantom_target(folder: Path) -> Target:
    """The phantoms have no files, only numbers."""
    numbers = st.one_of(st.integers(-2, 40), st.integers())
    options = st.fixed_dictionaries(
        {}, optional={"num_studies": numbers, "seed": numbers, "image_size": st.integers(-1, 40)}
    )

    def check(case: dict[str, int]) -> str:
        module = load_source("phantom")
        try:
            row = next(module.rows(**case))
        except ValueError as error:
            assert "expected at least" in str(error)
            return "ValueError"
        RowFinisher(["frontal", "lateral"], [], shorter_side=16, quality=95, min_words=3)([row])
        return "rows"

    return Target(options, check)


SOURCES: dict[str, Callable[[Path], Target]] = {
    **{name: partial(source_target, name) for name in MAKERS},
    "phantom": phantom_target,
}
