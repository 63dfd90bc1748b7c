from pathlib import Path

import pytest

from m3ae.tasks.data import refuse_test_rows
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
