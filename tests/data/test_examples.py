from pathlib import Path

import numpy as np
import pytest

from m3ae.data.examples import Example, ExampleDataset, OtherImages, SplitRows
from m3ae.data.pairs import PairColumns
from m3ae.training.batches import Visit
from tests.tasks.tiny_finetuning import write_splits

COLUMNS = PairColumns(("image",), ())


def dataset(folder: Path, images: list[int | None], limit: int | None = None) -> ExampleDataset:
    rows = [{"id": f"r{i}", "split": "test", "image": image, "kind": "k"} for i, image in enumerate(images)]
    split = SplitRows(write_splits(folder, {"test": rows}), "test", COLUMNS)
    examples = [Example(i, f"e{i}", (f"text {i}", "another"), i, {}) for i in range(len(images))]
    return ExampleDataset(split, examples, limit)


def grey(sample: object) -> int | None:
    image = sample.pair.image  # type: ignore[attr-defined]
    return None if image is None else round(np.asarray(image).mean())


def test_a_visit_draws_one_of_the_texts_and_seed_0_the_first(tmp_path: Path) -> None:
    examples = dataset(tmp_path / "data", [10, 20])
    first, second = examples[Visit(1, 0)], examples[Visit(1, 1 << 32)]
    assert (first.pair.id, first.pair.text, first.target, grey(first)) == ("e1", "text 1", 1, 20)
    assert second.pair.text == "another" and second.pair.text_id != first.pair.text_id
    assert [examples.length(Visit(1, seed)) for seed in (0, 1 << 32)] == [6, 7]
    assert examples.texts() == ["text 0", "another", "text 1", "another"]


def test_cells_come_without_images(tmp_path: Path) -> None:
    rows = dataset(tmp_path / "data", [10, 20]).rows
    assert list(rows.cells())[1] == {"id": "r1", "split": "test", "kind": "k"} and len(rows) == 2


def test_a_limit_keeps_examples_from_everywhere(tmp_path: Path) -> None:
    assert [example.row for example in dataset(tmp_path / "data", [0, 1, 2, 3, 4], limit=3).examples] == [0, 2, 4]


def test_other_images_differ_in_the_image_alone(tmp_path: Path) -> None:
    examples = dataset(tmp_path / "data", [10, 10, None, 10, 20, 30])
    others = OtherImages(examples)
    found = [(examples[Visit(i, 0)], others[Visit(i, 0)]) for i in range(len(others))]
    # three further on; where that is the same image or none, the next after it
    assert [grey(other) for _, other in found] == [20, 20, None, 20, 10, 10]
    for own, other in found:
        assert other._replace(pair=own.pair) == own
        assert other.pair._replace(image=own.pair.image, image_id=own.pair.image_id) == own.pair


def test_without_another_image_the_own_one_stays(tmp_path: Path) -> None:
    others = OtherImages(dataset(tmp_path / "data", [10, 10]))
    assert grey(others[Visit(0, 0)]) == 10


def test_a_missing_column_is_explained(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", {"test": [{"id": "a", "image": 3}]})
    with pytest.raises(ValueError, match="no column 'question'; it has id, image"):
        SplitRows(folder, "test", PairColumns(("image",), ("question",)))
