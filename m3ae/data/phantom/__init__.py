"""Built-in data: synthetic chest radiographs, frontal and lateral, with a report and the factors behind both.

The phantom needs no download, every factor is known, and a study depends on its seed and index alone, not on the
number of studies. Finding, side, zone and size are independent of each other, as far as they apply, and of everything
else that varies between patients; on request all five factors apply to every study.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np

from m3ae.data.phantom.render import render
from m3ae.data.phantom.report import sample_factors, sample_independent_factors, write_report
from m3ae.data.sources._common import IMAGE, STRING, STRINGS, features

FEATURES = features(
    frontal=IMAGE,
    lateral=IMAGE,
    text=STRINGS,
    **dict.fromkeys(("finding", "side", "zone", "size", "heart"), STRING),
)

SMALLEST_IMAGE = 32  # a small nodule is three pixels wide


def rows(
    *,
    num_studies: int = 2000,
    seed: int = 0,
    image_size: int = 128,
    factors: Literal["one_finding", "independent"] = "one_finding",
) -> Iterator[dict[str, Any]]:
    """Yield one row per study; the ninth of every ten is for validation and the tenth for the test.

    The image cells are picklable functions without arguments that render the picture in a worker.

    Args:
        num_studies: number of studies.
        seed: another seed gives other studies.
        image_size: height and width in pixels.
        factors: one_finding, or none, to which side, zone and size may apply; or independent, where every study has
            five factors: a nodule or an opacity, its side, zone and size, and a heart that is slender or dilated.

    Raises:
        ValueError: An argument is out of range.
    """
    least_values = {"num_studies": (num_studies, 1), "seed": (seed, 0), "image_size": (image_size, SMALLEST_IMAGE)}
    for name, (value, least) in least_values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    sample = sample_independent_factors if factors == "independent" else sample_factors
    for index in range(num_studies):
        rng = np.random.default_rng([seed, index])
        study = sample(rng)
        yield {
            "id": f"phantom-{seed}-{index:06d}",
            "split": {8: "validation", 9: "test"}.get(index % 10, "train"),
            "frontal": partial(render, study, seed, index, "frontal", image_size),
            "lateral": partial(render, study, seed, index, "lateral", image_size),
            "text": [write_report(study, rng)],
            **dataclasses.asdict(study),
        }
