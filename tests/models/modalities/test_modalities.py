"""The kinds of modalities."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import m3ae
from m3ae import LatentConfig, M3AEConfig
from m3ae.models.modalities import (
    KINDS,
    BatchOptions,
    Modality,
    build_modalities,
    configure,
    register_decoder,
    register_encoder,
    register_modality,
)
from tests.models.tiny_latent import DIGITS, digits_batch, latent_config, latent_model


@pytest.fixture
def tables() -> Iterator[None]:
    """What is registered in a test is forgotten after it."""
    kept = dict(KINDS), {kind: (dict(own.encoders), dict(own.decoders)) for kind, own in KINDS.items()}
    yield
    KINDS.clear()
    KINDS.update(kept[0])
    for kind, (encoders, decoders) in kept[1].items():
        KINDS[kind].encoders, KINDS[kind].decoders = encoders, decoders


class Film(Modality):
    kind = "film"
    dimensions = ("T", "H", "W")
    encoders: ClassVar = {"cnn": lambda modality: encoder_of_films(modality)}
    decoders: ClassVar = {"linear": lambda modality, size: decoder_of_films(modality, size)}


def decoder_of_films(modality: Modality, size: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(size, 60), torch.nn.Unflatten(1, modality.shape))


def encoder_of_films(modality: Modality) -> torch.nn.Module:
    convolution = torch.nn.Conv3d(1, 2, 3, padding=1)
    rest = [torch.nn.Flatten(), torch.nn.Linear(120, modality.config.hidden_size)]
    return torch.nn.Sequential(torch.nn.Unflatten(1, (1, 3)), convolution, torch.nn.GELU(), *rest)


PIXELS = np.arange(36, dtype=np.uint8).reshape(6, 6)
FILM = {"kind": "film", "shape": [3, 4, 5], "hidden_size": 16}


def test_a_kind_of_a_users_own_is_trained_saved_and_loaded(tables: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x.kind is 'film'; expected one of .* Import the file that registers"):
        configure("x", FILM)
    assert register_modality(Film) is Film and register_modality(Film) is Film
    model = latent_model({**DIGITS, "scan": FILM}, kind="poe")
    batch = {**digits_batch(), "scan": {"values": torch.randn(6, 3, 4, 5)}}
    loss = model(batch).loss
    loss.backward()
    assert all(own.grad is not None for own in model.latent_head.experts["scan"].parameters())
    model.save_pretrained(tmp_path)
    loaded = m3ae.M3AEForGeneration.from_pretrained(tmp_path).eval()
    eps = torch.zeros(1, 6, model.latent.total_size)
    torch.testing.assert_close(loaded(batch, eps=eps).loss, model(batch, eps=eps).loss)
    scan = loaded.latent_head.modalities["scan"]
    assert scan.values(loaded.generate_modalities(batch, ["scan"])["scan"][0])[0].shape == (3, 4, 5)

    class Other(Modality):
        kind = "film"

    with pytest.raises(ValueError, match="the kind 'film' is registered already"):
        register_modality(Other)


def test_encoders_and_decoders_of_a_users_own(tables: None) -> None:
    @register_encoder("vector", "linear")
    def encoder(modality: Modality) -> torch.nn.Module:
        return torch.nn.Linear(*modality.shape, modality.config.hidden_size)

    @register_decoder("vector", "linear")
    def decoder(modality: Modality, input_size: int) -> torch.nn.Module:
        return torch.nn.Linear(input_size, *modality.shape)

    own = {"kind": "vector", "shape": [7], "encoder": "linear", "decoder": "linear", "hidden_size": 8}
    model = latent_model({"x": own})
    assert model.latent_head.decoders["x"].weight.shape == (7, 5)
    assert model({"x": {"values": torch.randn(3, 7)}}).loss.isfinite()
    assert "linear" not in KINDS["sequence"].encoders
    with pytest.raises(ValueError, match="kind is 'vectors'; expected one of 'image'"):
        register_encoder("vectors", "linear")
    with pytest.raises(ValueError, match="the encoder of the kind vector 'mlp' is registered already"):
        register_encoder("vector", "mlp")(encoder)


def test_options_of_other_kinds_are_dropped_at_their_defaults_alone() -> None:
    """Earlier versions saved all options of all kinds with each modality."""
    saved = {"kind": "vector", "shape": [2], "labels": None, "mean": None, "max_length": 64, "patch_size": None}
    assert configure("x", saved) == configure("x", {"kind": "vector", "shape": [2]})
    with pytest.raises(ValueError, match=r"latent.modalities.x has no option 'max_length'"):
        configure("x", {**saved, "max_length": 32})


@pytest.mark.parametrize(
    ("name", "value", "tensor"),
    [
        ("glyph", Image.fromarray(PIXELS), torch.from_numpy(PIXELS)[None, None] / 255),
        ("speech", np.ones((4, 3), np.float32), torch.ones(1, 4, 3)),
        ("label", "b", torch.tensor([1])),
        ("several", ["a", "c"], torch.tensor([[1.0, 0.0, 1.0]])),
    ],
)
def test_a_value_becomes_a_cell_a_tensor_and_a_picture(name: str, value: object, tensor: torch.Tensor) -> None:
    labels = {"kind": "labels", "labels": ["a", "b", "c"]}
    modality = build_modalities(latent_config({**DIGITS, "several": labels}))[name]
    cell, draw = modality.cell(value), np.random.default_rng(0)
    batch = modality.batch([cell, None], BatchOptions(), [draw, draw])
    torch.testing.assert_close(batch[modality.tensor][:1], tensor.to(batch[modality.tensor].dtype))
    assert not batch[modality.tensor][1].any()
    again = modality.value(cell)
    assert np.array_equal(np.asarray(again), np.asarray(value))
    modality.draw(Figure().subplots(), modality.drawable(again))
    (shown,) = modality.values(modality.elements(batch)[:1])
    modality.draw(Figure().subplots(), modality.drawable(shown))


def test_configurations_are_those_of_the_kind() -> None:
    options = LatentConfig(modalities=DIGITS).modalities
    assert "labels" in options["label"] and "labels" not in options["speech"] and "mean" not in options["label"]
    assert M3AEConfig(latent={"modalities": options}).latent.modalities == options
