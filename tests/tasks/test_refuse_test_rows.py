from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from m3ae.data.samples import Visit
from m3ae.tasks.data import refuse_test_rows, rows_left_out
from m3ae.tasks.pretraining import PreTraining
from tests.data.small_folder import picture, stored, write_splits
from tests.tasks.tiny import tiny_run


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """A prepared folder of which one image is in train and in test."""
    rows = [{"id": str(i), "image": stored(picture(i)), "text": ["Clear lungs."]} for i in range(4)]
    return write_splits(tmp_path / "leaky", train=rows, test=rows[3:])


def test_a_run_on_test_images_is_refused_unless_it_is_allowed(leaky: Path, tmp_path: Path) -> None:
    data, training = {"prepare": None, "path": leaky, "image_columns": ["image"]}, {"validate_every": None}
    with pytest.raises(ValueError, match="1 of the 1 images of leaky/test are in leaky/train: 1 of 1 rows"):
        PreTraining.from_config(tiny_run(leaky, tmp_path / "run", data=data, training=training))
    allowed = tiny_run(leaky, tmp_path / "run", data=data | {"allow_test_rows": True}, training=training)
    assert len(PreTraining.from_config(allowed).train_dataset) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_would_be_refused_are_left_out(leaky: Path, tmp_path: Path, capsys, streaming: bool) -> None:
    data = {"prepare": None, "path": leaky, "image_columns": ["image"], "leave_out_test_rows": True}
    config = tiny_run(leaky, tmp_path / "run", data=data | {"streaming": streaming}, training={"validate_every": None})
    rows = PreTraining.from_config(config).train_dataset
    assert len(rows) == len(rows.texts()) == 3
    samples = islice(rows.share(0, 1), 6) if streaming else [rows[Visit(i % 3, 0, i // 3)] for i in range(6)]
    assert Counter(sample.id for sample in samples) == {"0": 2, "1": 2, "2": 2}
    assert f"{leaky}: 1 of 4 rows show images of held-out splits: left out" in capsys.readouterr().out


def test_a_set_of_test_images_alone_and_contradictory_options_are_refused(leaky: Path, tmp_path: Path) -> None:
    row = {"id": "new", "image": stored(picture(3)), "text": ["Clear lungs."]}
    data = {"prepare": None, "path": write_splits(tmp_path / "new", train=[row]), "leave_out_test_rows": True}
    with pytest.raises(ValueError, match=r"all 1 training rows of .*new show images of held-out splits: leave out"):
        rows_left_out(tiny_run(leaky, tmp_path / "run", data=data | {"held_out": [leaky]}).data)
    with pytest.raises(ValueError, match="leave_out_test_rows: got true beside allow_test_rows=true"):
        tiny_run(leaky, tmp_path / "run", data=data | {"allow_test_rows": True})


def test_held_out_folders_and_further_sets_are_read(leaky: Path, tmp_path: Path) -> None:
    row = {"id": "new", "image": stored(picture(3).resize((48, 40)), "JPEG"), "text": ["Clear lungs."]}
    new = write_splits(tmp_path / "new", train=[row])
    refuse_test_rows(tiny_run(new, tmp_path / "run", data={"path": new, "prepare": None}).data)
    held_out = {"path": new, "prepare": None, "held_out": [leaky]}
    with pytest.raises(
        ValueError, match="0 of the 1 images of leaky/test are in new/train, and 1 look like one of its images"
    ):
        refuse_test_rows(tiny_run(new, tmp_path / "run", data=held_out).data)
    also = {"path": new, "prepare": None, "also": [{"path": leaky}]}
    with pytest.raises(ValueError, match="1 of the 1 images of leaky/test are in leaky/train"):
        refuse_test_rows(tiny_run(new, tmp_path / "run", data=also).data)
