"""Built-in data: synthetic chest radiographs, frontal and lateral, with a report and the factors behind both.

An imaging phantom rather than real data: nothing is downloaded, every factor is known, and a study depends on its seed
and index alone, not on the number of studies. Finding, side, zone and size are drawn independently of each other, as
far as they apply, and of everything else that varies between patients; on request all five factors apply to every
study.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import datasets
import numpy as np

from m3ae.data.phantom_render import render
from m3ae.data.phantom_report import FACTOR_WORDS, Factors, sample_factors, sample_independent_factors, write_report

__all__ = ["FACTOR_WORDS", "FEATURES", "Factors", "render", "rows", "sample_factors", "write_report"]

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "frontal": datasets.Image(),
        "lateral": datasets.Image(),
        "text": datasets.List(datasets.Value("string")),
        "finding": datasets.Value("string"),
        "side": datasets.Value("string"),
        "zone": datasets.Value("string"),
        "size": datasets.Value("string"),
        "heart": datasets.Value("string"),
    }
)

SMALLEST_IMAGE = 32  # below, a small nodule is under three pixels wide


def rows(
    *,
    num_studies: int = 2000,
    seed: int = 0,
    image_size: int = 128,
    factors: Literal["one_finding", "independent"] = "one_finding",
) -> Iterator[dict[str, Any]]:
    """Yield one row per study; of every ten, the ninth is for validation and the tenth for the test.

    The image cells are picklable functions without arguments that render the picture, so that workers can.

    Args:
        num_studies: how many studies.
        seed: another seed gives other studies.
        image_size: height and width in pixels.
        factors: one_finding, or none, to which side, zone and size may apply; or independent, where every study has
            five factors: a nodule or an opacity, its side, zone and size, and a heart that is slender or dilated.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, least in (
        ("num_studies", num_studies, 1),
        ("seed", seed, 0),
        ("image_size", image_size, SMALLEST_IMAGE),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    sample = sample_independent_factors if factors == "independent" else sample_factors
    for index in range(num_studies):
        rng = np.random.default_rng([seed, index])
        drawn = sample(rng)
        yield {
            "id": f"phantom-{seed}-{index:06d}",
            "split": {8: "validation", 9: "test"}.get(index % 10, "train"),
            "frontal": partial(render, drawn, seed, index, "frontal", image_size),
            "lateral": partial(render, drawn, seed, index, "lateral", image_size),
            "text": [write_report(drawn, rng)],
            **dataclasses.asdict(drawn),
        }
