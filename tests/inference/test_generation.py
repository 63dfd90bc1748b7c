from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference import generate, traverse
from m3ae.inference.generation import encode_modalities, read_modality
from tests.models.tiny_latent import STUDY, latent_model

GLYPH = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6), dtype=np.uint8))


def test_what_is_not_given_is_generated():
    model = latent_model()
    speech = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    samples = generate(model, None, {"glyph": GLYPH, "speech": speech}, num_samples=2, seed=5)
    assert list(samples) == ["label"]
    batch = {
        "glyph": {"pixel_values": torch.from_numpy(np.array(GLYPH)).float()[None, None] / 255},
        "speech": {"values": torch.from_numpy(speech)[None]},
    }
    expected = model.generate_modalities(batch, ["label"], 2, generator=torch.Generator().manual_seed(5))["label"]
    for scores, row in zip(samples["label"], expected[:, 0].tolist(), strict=True):
        assert scores == pytest.approx(dict(zip("abc", row, strict=True)))


def test_images_and_arrays_come_out_as_they_went_in():
    model = latent_model()
    samples = generate(model, None, {"label": "b"}, ["glyph", "speech"], temperature=0.0)
    (picture,), (array,) = samples["glyph"], samples["speech"]
    means = model.generate_modalities({"label": {"labels": torch.tensor([1])}}, temperature=0.0)
    assert np.array_equal(np.asarray(picture), (means["glyph"][0, 0, 0] * 255).round().byte().numpy())
    np.testing.assert_allclose(array, means["speech"][0, 0].numpy(), atol=1e-6)


def test_texts_and_colour_images():
    tokenizer = train_tokenizer(["a text"], 270)
    model = latent_model(STUDY)
    model.config.text_config.vocab_size = len(tokenizer)
    batch = encode_modalities(model, tokenizer, {"text": "a text", "frontal": GLYPH})
    assert batch["frontal"]["pixel_values"].shape == (1, 3, 32, 32)
    assert tokenizer.decode(batch["text"]["input_ids"][0], skip_special_tokens=True).strip() == "a text"
    samples = generate(model, SimpleNamespace(batch_decode=lambda ids, **_: [" x "] * len(ids)), {"frontal": GLYPH})
    assert samples["text"] == ["x"] and samples["lateral"][0].size == (32, 32)


def test_wide_images_are_seen_as_preparing_would_show_them():
    ramp = np.arange(0, 256, 51, dtype=np.uint8).repeat(6).reshape(6, 6)
    for wide in (ramp.astype(np.uint16) * 16, ramp.astype(np.float32) / 255):
        batch = encode_modalities(latent_model(), None, {"glyph": Image.fromarray(wide)})
        np.testing.assert_allclose(batch["glyph"]["pixel_values"][0, 0], ramp / 255, atol=1e-6)


def test_labels_are_lists_of_names_and_come_out_as_probabilities():
    labels = {"kind": "labels", "labels": ["heart", "opacity", "rare"], "hidden_size": 8, "num_layers": 1}
    model = latent_model({"findings": labels, "silent": {**labels, "encoder": "none"}})
    given = read_modality(model, "findings", "rare, heart")
    batch = encode_modalities(model, None, {"findings": given})
    assert given == ["rare", "heart"] and batch["findings"]["values"].tolist() == [[1, 0, 1]]
    (samples,) = generate(model, None, {"findings": given}, ["silent"], temperature=0.0)["silent"]
    expected = model.generate_modalities(batch, ["silent"], temperature=0.0)["silent"][0, 0]
    assert samples == pytest.approx(dict(zip(labels["labels"], expected.tolist(), strict=True)))
    assert all(0 < share < 1 for share in samples.values())
    with pytest.raises(ValueError, match="findings: got 'hart', expected some of heart, opacity, rare"):
        encode_modalities(model, None, {"findings": ["hart"]})


def test_without_anything_given_all_is_drawn_from_the_prior():
    model = latent_model()
    samples = generate(model, None, {}, num_samples=3, seed=2)
    expected = model.sample_prior(3, generator=torch.Generator().manual_seed(2))["label"]
    assert [scores["a"] for scores in samples["label"]] == pytest.approx(expected[:, 0].tolist())


def test_a_traversal_changes_one_dimension():
    model = latent_model()
    given = {"label": "a"}
    z = model.sample_latent({"label": {"labels": torch.tensor([0])}}, temperature=0.0)[0].repeat(2, 1)
    for dimension in (1, 9):  # shared, and private to speech
        moved = z.clone()
        moved[:, dimension] = torch.tensor([-2.0, 2.0])
        if dimension == 1:
            moved[:, 5:] = 0
            moved = model.latent_head.complete(moved, {})
        samples = traverse(model, None, given, dimension, [-2.0, 2.0], ["speech"])
        expected = model.decode(moved, ["speech"])["speech"].detach()
        np.testing.assert_allclose(np.stack(samples["speech"]), expected, atol=1e-6)
    z = model.sample_latent_prior(1, generator=torch.Generator().manual_seed(3))
    moved = traverse(model, None, {}, 9, [z[0, 9].item()], ["speech"], seed=3)["speech"]
    np.testing.assert_allclose(moved[0], model.decode(z, ["speech"])["speech"][0].detach(), atol=1e-6)
    with pytest.raises(ValueError, match="dimension must be 0 to 9, got 10"):
        traverse(model, None, given, 10, [0.0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label": "d"}, "label: got 'd', expected one of a, b, c"),
        ({"speech": np.zeros((4, 2))}, r"got an array of shape \(4, 2\), expected \(4, 3\)"),
        ({"glyph": "a.png"}, "glyph is of kind image: expected Image, got str"),
        ({"sound": "x"}, "The model has no modality 'sound'"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        generate(latent_model(), None, given)


def test_values_are_read_by_the_kind_of_their_modality(tmp_path: Path):
    model = latent_model()
    GLYPH.save(tmp_path / "g.png")
    np.save(tmp_path / "s.npy", np.ones((4, 3)))
    assert read_modality(model, "label", "b") == "b"
    assert np.array_equal(np.asarray(read_modality(model, "glyph", str(tmp_path / "g.png"))), np.asarray(GLYPH))
    assert read_modality(model, "speech", str(tmp_path / "s.npy")).shape == (4, 3)
    with pytest.raises(ValueError, match=r"no array in a \.npy file"):
        read_modality(model, "speech", str(tmp_path / "g.png"))
