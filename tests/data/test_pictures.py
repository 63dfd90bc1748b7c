import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3ae.data import pictures as module
from m3ae.data.pictures import _bins, _lines, draw_pictures, label_counts, matrix_columns, spread_positions
from m3ae.data.prepared import load_split
from m3ae.figures import cut
from tests.data.small_folder import picture, stored, write_splits

NAMES = ["contact_sheet.png", "text_lengths.png", "image_sizes.png", "counts.png"]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"study-{i}",
            "frontal": stored(picture(i), "JPEG") if i % 3 else None,
            "lateral": stored(picture(i + 100, (60, 90))) if i % 4 else None,
            "text": [f"Costs $5 and ${i}. " + "word " * 40 * i] if i % 5 else None,
            "labels": ["normal", "$\\no formula$ but a very long name that is cut"] if i % 2 else [],
        }
        for i in range(count)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_pairs_with_missing_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"id": "9", "split": "train", "column": None, "reason": "not an image", "detail": "9.jpg"}
    cell = {"id": "8", "split": "test", "column": "text", "reason": "text too short", "detail": None}
    rejected = "".join(json.dumps(line) + "\n" for line in (entry, entry, cell))
    folder = write_splits(tmp_path / "set", rejected, train=pairs(14), validation=pairs(3), test=[])
    before = contents(folder)
    paths = draw_pictures(folder)
    assert paths == [folder / "figures" / name for name in NAMES]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width in (780, 1560)
    assert contents(folder) == before
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: 17 rows, 3 rejected",
        "        2  row: not an image, e.g. 9 (9.jpg)",
        "        1  text: text too short, e.g. 8",
        "labels, train: normal 7, $\\no formula$ but a very long name that… 7",
        "labels, validation: normal 1, $\\no formula$ but a very long name that… 1",
    ]
    draw_pictures(folder)
    assert f"{folder / 'figures'}: replaced {', '.join(NAMES)}" in capsys.readouterr().err


def test_questions_and_label_sets(tmp_path: Path) -> None:
    questions = [
        {"id": str(i), "image": stored(picture(i)), "question": "Is it normal?", "answer": "yes" if i % 2 else "no"}
        for i in range(6)
    ]
    assert draw_pictures(write_splits(tmp_path / "vqa", test=questions), output=tmp_path / "out") == [
        tmp_path / "out" / name for name in NAMES
    ]
    labelled = [{"id": str(i), "image": stored(picture(i)), "labels": ["nodule"]} for i in range(3)]
    names = [path.name for path in draw_pictures(write_splits(tmp_path / "labels", train=labelled))]
    assert names == ["contact_sheet.png", "image_sizes.png", "counts.png"]
    texts = [{"id": str(i), "text": ["Clear lungs."]} for i in range(3)]
    names = [path.name for path in draw_pictures(write_splits(tmp_path / "texts", train=texts))]
    assert names == ["contact_sheet.png", "text_lengths.png", "counts.png"]


def test_sequences_are_drawn_beside_images(tmp_path: Path) -> None:
    ramp = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = [{"id": str(i), "image": stored(picture(i)), "speech": ramp, "clip_id": "7"} for i in range(3)]
    folder = write_splits(tmp_path / "set", train=[*rows, {"id": "3", "image": stored(picture(3))}])
    features = load_split(folder, "train")
    assert matrix_columns(features) == ["speech"] and not label_counts({"train": features})
    with_ramp = draw_pictures(folder)[0].read_bytes()
    for row in rows:
        row["speech"] = ramp[::-1]
    other = write_splits(tmp_path / "other" / "set", train=[*rows, {"id": "3", "image": stored(picture(3))}])
    assert draw_pictures(other)[0].read_bytes() != with_ramp


def test_the_same_rows_give_the_same_pictures(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "set", train=pairs(20))
    first, again = (
        [path.read_bytes() for path in draw_pictures(folder, num_rows=3, output=tmp_path / n)] for n in "ab"
    )
    other = [path.read_bytes() for path in draw_pictures(folder, num_rows=3, seed=1, output=tmp_path / "c")]
    assert first == again and first[0] != other[0] and first[1:] == other[1:]


@pytest.mark.parametrize(
    ("splits", "split", "message"),
    [
        ({"train": pairs(2)}, "test", "no split 'test': it has train"),
        ({"train": pairs(2), "test": []}, "test", "split 'test' .* is empty"),
    ],
)
def test_bad_input_is_explained(tmp_path: Path, splits: dict[str, Any], split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_pictures(write_splits(tmp_path / "set", **splits), split=split)


def test_a_set_without_rows_says_so(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "set", train=pairs(1))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": {}}))
    with pytest.raises(ValueError, match=r"no rows to show: all are in rejected.jsonl"):
        draw_pictures(folder)


def test_positions_are_spread_and_chosen_by_the_seed() -> None:
    chosen = spread_positions(1000, 10, seed=0)
    assert [position // 100 for position in chosen] == list(range(10))
    assert chosen == spread_positions(1000, 10, seed=0) != spread_positions(1000, 10, seed=1)
    assert spread_positions(4, 12, seed=0) == [0, 1, 2, 3]


def test_lines_of_a_card() -> None:
    row = {"text": ["one two three " * 30, "second"], "answer": None}
    row |= {"labels": ["a", "b"], "organ": "chest", "side": ""}
    lines = [line.text for line in _lines(row, ["labels", "organ", "side", "answer"], width=30)]
    assert len(lines) == 11 and all(len(line) <= 30 for line in lines)
    assert lines[7].endswith(" …")
    assert lines[8:] == ["and 1 more", "no answer", "labels: a, b · organ: chest"]
    assert [cut("abcdef", length) for length in (5, 6)] == ["abcd…", "abcdef"]


def test_whole_numbers_fill_the_bins_evenly() -> None:
    bins = _bins(np.array([3, 100]))
    assert bins[0] == 2.5 and bins[-1] >= 100.5 and set(np.diff(bins)) == {4}
    assert (_bins(np.array([256, 256]))[[0, -1]] == [229.5, 283.5]).all()
    assert _bins(np.array([1.0, 1.0]))[[0, -1]] == pytest.approx([0.9, 1.1])


def test_labels_are_columns_whose_values_repeat(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "figure": f"f{i}", "organ": "chest" if i % 2 else None, "labels": ["a", "b"], "text": ["x"]}
        for i in range(8)
    ]
    folder = write_splits(tmp_path / "set", train=rows)
    found = label_counts({"train": load_split(folder, "train")})
    assert found == {"labels": {"train": Counter(a=8, b=8)}, "organ": {"train": Counter(chest=4)}}
    assert list(found) == ["labels", "organ"] and module.MAX_PANELS == 4


def test_cards_do_not_name_what_no_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [study | {"question": None, "answer": ""} for study in pairs(4)]
    lines: list[str] = []
    monkeypatch.setattr(module, "_lines", lambda *args: iter(lines.extend(line.text for line in _lines(*args)) or []))
    draw_pictures(write_splits(tmp_path / "set", train=rows))
    assert "no text" in lines and not {"no question", "no answer"} & {*lines}
