"""Probes of latents for problems that the model has not seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3ae.tasks.latent_problems import ProblemProbes, ProblemReader
from m3ae.training.task_config import ProblemsConfig
from tests.data.small_folder import write_splits

TRAIN = [["normal"], ["normal"], ["effusion", "nodule"], ["effusion", "device"], ["normal"], [], None]
TEST = [["nodule"], None, ["effusion", "unheard of"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def rows(split: str, labels: list[Any]) -> list[dict[str, Any]]:
        return [{"id": f"{split}{row}", "labels": own, "kind": "film"} for row, own in enumerate(labels)]

    return write_splits(tmp_path / "studies", train=rows("train", TRAIN), test=rows("test", TEST))


def test_the_most_frequent_problems_of_training_rows(folder: Path) -> None:
    reader = ProblemReader(folder, ProblemsConfig(num_labels=3))
    assert reader.names == ["normal", "effusion", "device"]
    assert reader.targets("train", ["train6", "train3", "train5"]).tolist() == [[-100] * 3, [0, 1, 1], [0, 0, 0]]
    assert reader.targets("test", ["test0", "test2"]).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_a_column_of_single_names_will_do(folder: Path) -> None:
    assert ProblemReader(folder, ProblemsConfig(column="kind")).names == ["film"]


def test_another_column_is_explained(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"problems.column: expected a column of names in .*, got 'tags'.* labels"):
        ProblemReader(folder, ProblemsConfig(column="tags"))


def test_probes_rank_rows_by_their_latents() -> None:
    latents = np.array([[-2.0, 0.3], [-1.0, -0.2], [1.0, 0.1], [2.0, -0.4]], np.float32)
    learnt = np.array([[0, 1, 0, -100], [0, 0, 0, -100], [1, 1, 0, 0], [1, 0, 0, 1]])
    judged = np.array([[1, 0, 0, 0], [0, 0, 1, -100], [1, 0, 0, 0], [-100, 0, 0, 0]])
    names = ["right", "not here", "never learnt", "one kind"]
    found = ProblemProbes(latents, learnt).judge(latents, judged, names)
    # Of the rows with "right" at −2 and 1, the other one at −1 lies between: one pair of two is in order.
    assert found["auroc"]["right"] == found["macro_auroc"] == 0.5
    assert all(np.isnan(found["auroc"][name]) for name in names[1:])
    mirrored = ProblemProbes(latents, learnt).judge(latents, np.flip(learnt, 0), names)
    assert mirrored["auroc"]["right"] == 0
