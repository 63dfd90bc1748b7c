"""What a million rows take: processor seconds, memory, and the exponent p of time ~ rows^p.

    python benchmarks/million.py twins listing search recall --rows 100000 1000000 [--json figures.json]

- `twins`: near twins among random fingerprints, of which one in fifty has a twin at 20 bits (`m3ae data check`).
- `listing`: the rows of a table beside as many images, listed, checked and cut into shards (`m3ae prepare`, before any
  image is opened).
- `search`: opening a collection and its index of unit vectors (256), and one answer of ten hits with their texts.
- `recall`: both directions of R@K over rows × rows, from unit vectors (16); give fewer rows.

Every measurement has a process of its own, whose peak of memory is reported. Libraries that it does not use are not
imported.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def twins(rows: int, folder: Path) -> dict[str, float]:
    """Find near twins."""
    from m3ae.data.fingerprints import near_twins

    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 256, (rows, 32), dtype=np.uint8)
    copies = rows // 100
    flips = np.zeros((copies, 256), np.uint8)
    np.put_along_axis(flips, draw.random((copies, 256)).argsort(axis=1)[:, :20], 1, axis=1)
    hashes[-copies:] = hashes[:copies] ^ np.packbits(flips, axis=1)
    seconds, (twin, _) = timed(lambda: near_twins(hashes, hashes, 20))
    assert (twin >= 0).sum() == 2 * copies
    return {"seconds": seconds}


def listing(rows: int, folder: Path) -> dict[str, float]:
    """List the rows of a table."""
    from m3ae.data.rows import list_rows
    from m3ae.data.shards import plan_shards
    from m3ae.data.sources.folder import rows as table_rows

    (folder / "images").mkdir()
    for n in range(rows):
        (folder / "images" / f"{n:07d}.png").touch()
    with (folder / "train.csv").open("w") as table:
        table.write("image,text\n")
        table.writelines(f"images/{n:07d}.png,No acute finding in study number {n}.\n" for n in range(rows))
    seconds, shards = timed(lambda: plan_shards(list_rows(table_rows(folder), [folder]).rows, None))
    assert sum(map(len, shards)) == rows
    return {"seconds": seconds}


def search(rows: int, folder: Path) -> dict[str, float]:
    """Open a prepared set and its index, and answer once."""
    import torch

    from m3ae.data.prepared import MANIFEST, Manifest, SplitInfo
    from m3ae.inference.collections import open_collection
    from m3ae.inference.search import SearchIndex

    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "split": datasets.Value("string"),
            "image": datasets.Image(),
            "text": datasets.List(datasets.Value("string")),
        }
    )
    shards = {}
    for start in range(0, rows, 4096):
        numbers = range(start, min(start + 4096, rows))
        cells = [
            {"id": str(n), "split": "test", "image": {"bytes": b"x", "path": None}, "text": [f"Finding {n}. " * 20]}
            for n in numbers
        ]
        name = f"test-{start // 4096:05d}-of-{-(-rows // 4096):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(cells, schema=features.arrow_schema), folder / name)
        shards[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    info = SplitInfo(rows, {"image": rows}, rows, 0, shards)
    (folder / MANIFEST).write_text(Manifest("toy", {}, "", {"test": info}, {}, {}).to_json())
    draw = np.random.default_rng(0)
    for name in ("images", "texts"):
        vectors = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, 256))
        for start in range(0, rows, 65536):
            vectors[start : start + 65536] = draw.random((len(vectors[start : start + 65536]), 256), np.float32) - 0.5
    open_collection(folder)  # the first time makes the Arrow copy
    model = cast(Any, SimpleNamespace(itc_head=True))

    def opened() -> Any:
        return SearchIndex(model, cast(Any, None), open_collection(folder), folder)

    seconds, index = timed(opened)
    wall = time.perf_counter()

    def answer() -> list[Any]:
        from m3ae.models.retrieval import nearest

        cosines, found = nearest(torch.rand(1, 256) - 0.5, index._arrays["images"], 10)
        return [
            index._hit("images", row, score) for row, score in zip(found[0].tolist(), cosines[0].tolist(), strict=True)
        ]

    answered, hits = timed(answer)
    assert len(hits) == 10 and hits[0].texts[0].startswith(f"Finding {hits[0].image}. ")
    again, _ = timed(answer)
    return {"seconds": seconds, "first_answer": answered, "answer": again, "wall": time.perf_counter() - wall}


def recall(rows: int, folder: Path) -> dict[str, float]:
    """Measure recall both ways."""
    import torch

    from m3ae.metrics.retrieval import BothWays, Found, Ranking

    draw = torch.Generator().manual_seed(0)
    texts, images = (torch.nn.functional.normalize(torch.randn(rows, 16, generator=draw)) for _ in range(2))
    numbers = torch.arange(rows)
    ways = (lambda q: texts[q] @ images.T), (lambda q: images[q] @ texts.T)
    found = BothWays(*(Found(way, numbers, numbers) for way in ways))
    seconds, metrics = timed(lambda: Ranking.of(found, torch.stack([numbers, numbers], dim=1)).metrics())
    assert metrics["text_to_image_queries"] == rows
    return {"seconds": seconds}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of some work, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def measure(name: str, rows: int) -> dict[str, float]:
    """Return the figures of one measurement, with the peak of memory in GB."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, float] = globals()[name](rows, Path(folder))
    return figures | {"rows": rows, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What a million rows take.")
    parser.add_argument("names", nargs="+", choices=["twins", "listing", "search", "recall"])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    figures: dict[str, list[dict[str, float]]] = {}
    for name in options.names:
        for rows in options.rows:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                figures.setdefault(name, []).append(pool.apply(measure, (name, rows)))
            print(name, ", ".join(f"{key} {value:.3g}" for key, value in figures[name][-1].items()), flush=True)
        for one, two in pairwise(figures[name]):
            exponent = math.log(two["seconds"] / one["seconds"]) / math.log(two["rows"] / one["rows"])
            print(f"{name}: time ~ rows^{exponent:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
