from pathlib import Path

import numpy as np
import pytest

from m3ae.data.index import EmbeddingIndex, build_index


def unit_vectors(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batches(vectors: np.ndarray, size: int):
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        yield [f"image {start + row}" for row in range(len(part))], part


@pytest.mark.parametrize(("batch_size", "shard_size"), [(7, 1000), (7, 20), (50, 20), (20, 20)])
def test_search_is_exact_over_shards_and_after_loading(tmp_path: Path, batch_size: int, shard_size: int) -> None:
    vectors, queries = unit_vectors(90), unit_vectors(5, seed=1)
    built = build_index(tmp_path, batches(vectors, batch_size), shard_size=shard_size)
    assert sum(built.info.shards.values()) == 90 and max(built.info.shards.values()) == min(90, shard_size)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    for index in (built, EmbeddingIndex(tmp_path)):
        rows, products = index.search(queries, 10)
        assert rows.tolist() == expected.tolist() and index.ids[rows[0, 0]] == f"image {expected[0, 0]}"
        np.testing.assert_allclose(products, np.take_along_axis(queries @ vectors.T, expected, axis=1), rtol=1e-5)
        np.testing.assert_array_equal(index.vectors([88, 3, 19, 20, 3]), vectors[[88, 3, 19, 20, 3]])


def test_nothing_is_pickled(tmp_path: Path) -> None:
    build_index(tmp_path, batches(unit_vectors(3), 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.txt", "index.json", "shard-00000.faiss"]
    assert (tmp_path / "ids.txt").read_text() == "image 0\nimage 1\nimage 2\n"
    assert (tmp_path / "shard-00000.faiss").read_bytes()[:4] == b"IxFI"  # faiss's own format


def test_other_kinds_look_at_a_part_and_may_find_fewer(tmp_path: Path) -> None:
    vectors = unit_vectors(400)
    halves = build_index(tmp_path / "halves", batches(vectors, 400), kind="SQfp16", shard_size=150)
    assert halves.search(vectors[:9], 1)[0][:, 0].tolist() == list(range(9))
    lists = build_index(tmp_path / "lists", batches(vectors, 400), kind="IVF4,Flat", shard_size=200)
    rows, products = lists.search(vectors[:9], 400)
    assert rows[:, 0].tolist() == list(range(9))
    assert (rows == -1).any() and (np.isneginf(products) == (rows == -1)).all()
    np.testing.assert_array_equal(lists.vectors(range(190, 210)), vectors[190:210])


def test_more_than_there_are(tmp_path: Path) -> None:
    index = build_index(tmp_path, batches(unit_vectors(3), 2), shard_size=2)
    rows, _ = index.search(unit_vectors(1), 10)
    assert sorted(rows[0].tolist()) == [0, 1, 2] and len(index) == 3


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([], "Flat", "no embeddings to build an index of"),
        ([(["a"], unit_vectors(2))], "Flat", r"shape \(1, 16\), got \(2, 16\)"),
        ([(["a"], unit_vectors(1)), (["b"], unit_vectors(1, size=8))], "Flat", r"shape \(1, 16\), got \(1, 8\)"),
        ([(["two\nlines"], unit_vectors(1))], "Flat", r"one line of text, got 'two\\nlines'"),
        ([(["a"], unit_vectors(1))], "Flatt", "kind 'Flatt' cannot index 1 embeddings of size 16"),
        ([(["a"], unit_vectors(1))], "IVF4,Flat", "kind 'IVF4,Flat' cannot index 1 embeddings"),
    ],
)
def test_bad_input_is_explained(tmp_path: Path, given: list, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path, given, kind=kind)
    with pytest.raises(FileNotFoundError, match="no complete index"):
        EmbeddingIndex(tmp_path)


def test_a_bad_folder_is_explained(tmp_path: Path) -> None:
    index = build_index(tmp_path, batches(unit_vectors(3), 3))
    with pytest.raises(ValueError, match=r"queries of shape \(Q, 16\), got \(1, 8\)"):
        index.search(unit_vectors(1, size=8), 1)
    with pytest.raises(FileExistsError, match="holds something already"):
        build_index(tmp_path, batches(unit_vectors(3), 3))
    (tmp_path / "ids.txt").write_text("image 0\n")
    with pytest.raises(ValueError, match=r"is damaged: .* names 1"):
        EmbeddingIndex(tmp_path)
    description = tmp_path / "index.json"
    description.write_text(description.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="format version 2, expected 1"):
        EmbeddingIndex(tmp_path)
    description.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        EmbeddingIndex(tmp_path)
