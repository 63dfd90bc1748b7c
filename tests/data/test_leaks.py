import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from m3ae.data.leaks import HEADING, Overlap, find_leaking_rows, find_leaks, refuse_leaks
from m3ae.data.prepare import prepare
from tests.data.small_folder import picture, stored, write_splits

A, B, C, D, E = (picture(seed, (160, 128)) for seed in range(5))


def shrunk(image: Any) -> bytes:
    return stored(image.resize((80, 64)), "JPEG", quality=80)


def row(id: str, *texts: str, image: bytes | None = None) -> dict[str, Any]:
    return {"id": id, "image": image, "text": list(texts) or None}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """In `one`, train and test share a template text; `two` has a test image of `one`, and another one shrunk."""
    one = write_splits(
        tmp_path / "one",
        train=[
            row("t1", "No acute disease.", image=stored(A)),
            row("t2", "Small effusion.", image=stored(B)),
            row("t3", "no acute  disease."),
        ],
        validation=[row("v1", "Large effusion.", image=stored(C))],
        test=[row("e1", "No acute disease.", image=stored(D)), row("e2", image=stored(E))],
    )
    two = write_splits(
        tmp_path / "two",
        train=[row("n1", image=stored(D.convert("RGB"))), row("n2", image=stored(D)), row("n3", image=shrunk(E))],
    )
    return one, two


def numbers(overlaps: Sequence[Overlap]) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(o.split, o.other): (o.images, o.near_images, o.image_rows, o.texts, o.text_rows) for o in overlaps}


def test_what_is_shared_by_ordered_pairs_of_splits(folders: tuple[Path, Path]) -> None:
    report = find_leaks(folders)
    assert numbers(report.overlaps) == {
        ("one/train", "one/train"): (0, 0, 0, 1, 2),
        ("one/train", "one/test"): (0, 0, 0, 1, 2),
        ("one/test", "one/train"): (0, 0, 0, 1, 1),
        ("one/test", "two/train"): (1, 1, 2, 0, 0),
        ("two/train", "one/test"): (1, 1, 3, 0, 0),
        ("two/train", "two/train"): (1, 0, 2, 0, 0),
    }
    examples = {(o.split, o.other): o.examples for o in report.overlaps}
    assert examples["one/train", "one/train"] == ["t1 text t3"]
    assert examples["one/test", "two/train"] == ["e1 = n2", "e2 ~ n3"]
    assert examples["two/train", "one/test"] == ["n1 = e1", "n3 ~ e2"]
    assert examples["two/train", "two/train"] == ["n1 = n2"]
    sizes = report.splits["two/train"]
    assert (sizes.rows, sizes.images, sizes.texts) == (3, 2, 0)


def test_a_training_image_in_a_test_split_is_a_leak(folders: tuple[Path, Path]) -> None:
    report = find_leaks(folders)
    assert report.exit_status == 1
    assert report.leaks == [
        "1 of the 2 images of one/test are in two/train, and 1 look like one of its images: 2 of 2 rows, e.g. e1 = n2"
    ]
    assert f"LEAK: {report.leaks[0]}" in str(report)
    assert find_leaks(folders, max_distance=-1).leaks == [
        "1 of the 2 images of one/test are in two/train: 1 of 2 rows, e.g. e1 = n2"
    ]


def test_a_shared_text_is_reported_and_no_leak(folders: tuple[Path, Path]) -> None:
    report = find_leaks(folders[:1])
    assert report.exit_status == 0 and len(report.overlaps) == 3
    lines = str(report).splitlines()
    assert lines[0] == "one/train: 3 rows, 2 different images, 2 different texts"
    assert re.split(" {2,}", lines[4]) == list(HEADING)
    assert re.split(" {2,}", lines[6]) == ["one/train", "one/test", "0", "0", "0", "1", "2", "t1 text e1"]
    assert lines[-1] == "no training split shares an image with a validation or test split"


def test_json_has_everything(folders: tuple[Path, Path]) -> None:
    found = json.loads(find_leaks(folders).to_json())
    assert found["max_distance"] == 20 and len(found["leaks"]) == 1
    assert found["splits"]["one/test"] == {"rows": 2, "images": 2, "texts": 1}
    assert [entry["split"] for entry in found["overlaps"] if entry["is_leak"]] == ["one/test"]


def test_names_are_long_where_short_ones_are_not_unique(tmp_path: Path) -> None:
    twins = [write_splits(tmp_path / side / "set", train=[row("1", "x y z")]) for side in ("left", "right")]
    assert list(find_leaks(twins).splits) == [f"{folder}/train" for folder in twins]
    assert list(find_leaks([twins[0], twins[0] / ".." / "set"]).splits) == ["set/train"]


def test_nothing_shared(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "set", train=[row("1", image=stored(A))], test=[row("2", image=stored(B))])
    report = find_leaks([folder])
    assert report.overlaps == [] and "no image or text occurs twice" in str(report)


def test_training_is_refused_on_known_test_images(folders: tuple[Path, Path]) -> None:
    one, two = folders
    refuse_leaks([one])
    refuse_leaks([two])
    with pytest.raises(ValueError, match=r"(?s)1 of the 2 images of one/test are in two/train: 1 .*allow_test_rows"):
        refuse_leaks([one, two])
    with pytest.raises(ValueError, match=r"1 of the 2 images of one/test are in two/train, and 1 look like"):
        refuse_leaks([two], held_out=[one])
    refuse_leaks([one], held_out=[two])  # which has no held-out split


def test_rows_that_would_be_refused_are_found(folders: tuple[Path, Path]) -> None:
    one, two = folders
    assert find_leaking_rows([one, two]) == {one: set(), two: {"n1", "n2"}}
    assert find_leaking_rows([two], held_out=[one]) == {two: {"n1", "n2", "n3"}}  # near images count, too


def test_images_of_one_set_that_only_look_alike_are_not_refused(tmp_path: Path) -> None:
    rows = {"train": [row("1", image=stored(A))], "validation": [row("2", image=shrunk(A))]}
    folder = write_splits(tmp_path / "set", **rows)
    assert find_leaks([folder]).exit_status == 1
    refuse_leaks([folder])


@pytest.mark.real_data
def test_all_test_images_of_vqa_rad_are_training_images(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vqa_rad"
    prepare("vqa_rad", folder, source=shared / "data" / "vqa_rad", shorter_side=64, carve_validation=False)
    report = find_leaks([folder])
    assert numbers(report.overlaps)["vqa_rad/test", "vqa_rad/train"][:3] == (203, 0, 451)
    assert report.splits["vqa_rad/train"].images == 314
    with pytest.raises(ValueError, match="203 of the 203 images of vqa_rad/test are in vqa_rad/train"):
        refuse_leaks([folder])


def test_a_link_that_leads_to_itself_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError, match="loop does not exist: make it with m3ae prepare"):
        find_leaks([tmp_path / "loop"])
