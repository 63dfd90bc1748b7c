"""Arrays in memory as samples, and what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import m3ae
from m3ae.data.collate import Collator
from m3ae.data.samples import Visit
from m3ae.models.modalities import build_modalities

NAN = np.nan
IMAGES = np.random.default_rng(0).random((4, 1, 6, 8))


def arrays(**changes: Any) -> dict[str, Any]:
    vectors = np.array([[1.0, 2.0], [NAN, NAN], [3.0, -4.0], [0.0, 0.5]])
    return {"picture": IMAGES, "blood": vectors, "finding": ["a", "b", None, "a"], **changes}


def batch_of(dataset: m3ae.ArrayDataset) -> dict[str, dict[str, torch.Tensor]]:
    model = m3ae.M3AEConfig.named("tiny", latent={"modalities": dataset.modalities})
    return Collator(build_modalities(model))([dataset[Visit(row, 0)] for row in range(len(dataset))])


def test_kinds_and_shapes_follow_from_the_arrays_and_nan_and_none_are_missing() -> None:
    dataset = m3ae.ArrayDataset(arrays(speech=[None, np.ones((3, 2)), torch.zeros(3, 2), np.ones((3, 2))]))
    found = {name: (own["kind"], own.get("shape")) for name, own in dataset.modalities.items()}
    assert found == {
        "picture": ("image", [1, 6, 8]),
        "blood": ("vector", [2]),
        "finding": ("label", None),
        "speech": ("sequence", [3, 2]),
    }
    batch = batch_of(dataset)
    torch.testing.assert_close(batch["picture"]["pixel_values"], torch.from_numpy(IMAGES).float())
    assert batch["blood"]["values"].tolist() == [[1, 2], [0, 0], [3, -4], [0, 0.5]]
    assert batch["blood"]["present"].tolist() == [True, False, True, True]
    assert batch["finding"]["labels"].tolist() == [0, 1, 0, 0] and not batch["finding"]["present"][2]
    assert batch["speech"]["present"].tolist() == [False, True, True, True]


def test_images_of_eight_bits_and_lists_of_names() -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(4, 1, 6, 8)
    dataset = m3ae.ArrayDataset({"picture": torch.from_numpy(pixels), "found": [["x"], [], None, ["y", "x"]]})
    batch = batch_of(dataset)
    torch.testing.assert_close(batch["picture"]["pixel_values"], torch.from_numpy(pixels) / 255)
    assert batch["found"]["values"].tolist() == [[1, 0], [0, 0], [0, 0], [1, 1]]
    assert batch["found"]["present"].tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"blood": np.ones((3, 2))}, {}, "got picture 4, blood 3, finding 4, expected as many rows of each"),
        (
            {"blood": [[1, 2], [NAN, 1], [1, 2], [1, 2]]},
            {},
            "blood: row 1 has NaN or infinity in some of its elements",
        ),
        ({"blood": [[1, 2], [1, np.inf], [1, 2], [1, 2]]}, {}, "blood: row 1 has NaN or infinity"),
        ({"blood": [[1, 2], [1, 2, 3], [1, 2], None]}, {}, r"blood: row 1 has the shape \(3,\), expected \(2,\)"),
        ({"blood": np.full((4, 2), NAN)}, {}, "blood: no row has this modality"),
        ({"blood": np.ones((4, 2, 2, 2, 2, 2))}, {}, r"have the shape \[2, 2, 2, 2, 2\], expected \[F\]"),
        ({"picture": IMAGES * 255}, {}, r"picture: values lie in .* to 25\d.*, expected 0 to 1"),
        ({}, {"blood": {"likelihood": "bernoulli"}}, r"blood: values lie in -4 to 3, expected 0 to 1"),
        ({}, {"blood": {"shape": [3]}}, r"blood: got an array of shape \(2,\), expected \(3,\)"),
        ({}, {"blood": {"encoder": "vit"}}, "blood.encoder is 'vit'; expected one of 'mlp', 'none'"),
        ({}, {"blod": {}}, "got options of 'blod', expected some of picture, blood, finding"),
        ({"finding": ["a", 3, None, "b"]}, {}, "finding: row 1 is 3, expected a name, a list of names or None"),
        ({}, {"finding": {"labels": ["a"]}}, "finding: got 'b', expected one of a"),
        ({}, {"finding": {"kind": "text", "labels": None}}, "finding is of kind text, which needs a tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m3ae.ArrayDataset(arrays(**changes), options)


@pytest.mark.parametrize("networks", [("mlp", "mlp"), ("cnn", "cnn"), ("cnn", "transformer")])
def test_a_model_of_arrays_is_trained_saved_and_loaded(networks: tuple[str, str], tmp_path: Path) -> None:
    options = {"encoder": networks[0], "decoder": networks[1], "num_layers": 1, "hidden_size": 16, "patch_size": 2}
    dataset = m3ae.ArrayDataset(arrays(), {"picture": options})
    model = m3ae.train_generation(
        dataset, tmp_path / "run", validation=dataset, steps=3, batch_size=2, kind="mopoe", size=3
    )
    loaded = m3ae.M3AEForGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    drawn = loaded.generate_modalities({"blood": {"values": torch.tensor([[1.0, 2.0]])}}, temperature=0.0)
    assert drawn["picture"].shape == (1, 1, 1, 6, 8) and drawn["finding"].shape == (1, 1, 2)
    expected = model.generate_modalities({"blood": {"values": torch.tensor([[1.0, 2.0]])}}, temperature=0.0)
    torch.testing.assert_close(drawn, expected)
    with pytest.raises(FileExistsError):
        m3ae.train_generation(dataset, tmp_path / "run", steps=3)
