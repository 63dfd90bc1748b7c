"""The kind `volume`: its networks, its cells, its files, its pictures."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import m3ae
from m3ae import M3AEConfig
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_split
from m3ae.data.samples import Columns, SampleDataset, Visit
from m3ae.data.sets import SampleStream, StreamedSet
from m3ae.inference import generate
from m3ae.inference.generation import read_modality, read_values
from m3ae.models.modalities import KINDS, configure
from m3ae.models.modalities.volume import Blocks, Volume, surface
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model

SCAN = {"kind": "volume", "shape": [1, 8, 8, 12], "hidden_size": 32, "num_layers": 1, "likelihood": "bernoulli"}


def volume(**options: object) -> Volume:
    return KINDS["volume"]("scan", configure("scan", {**SCAN, **options}), M3AEConfig.named("tiny"))  # type: ignore[return-value]


def test_blocks_become_channels_and_come_back() -> None:
    voxels = torch.arange(2 * 4 * 4 * 6.0).view(1, 2, 4, 4, 6)
    cut = Blocks([2, 1, 3], merge=False)(voxels)
    assert cut.shape == (1, 12, 2, 4, 2)
    assert cut[0, :6, 1, 3, 0].tolist() == voxels[0, 0, 2:4, 3:4, 0:3].flatten().tolist()
    assert torch.equal(Blocks([2, 1, 3], merge=True)(cut), voxels)


@pytest.mark.parametrize("decoder_name", ["cnn", "implicit"])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_networks_end_in_the_shape_at_every_patch_size(patch_size: int, decoder_name: str) -> None:
    scan = volume(patch_size=patch_size, shape=[1, 8, 8, 16], decoder=decoder_name)
    encoder, decoder = scan.build_encoder(), scan.build_decoder(5)
    assert encoder is not None and encoder(torch.rand(3, 1, 8, 8, 16)).shape == (3, 32)
    assert decoder(torch.randn(3, 5)).shape == (3, 1, 8, 8, 16)


@pytest.mark.parametrize(("shape", "sides"), [([1, 48, 8, 9], [4, 4, 3]), ([2, 4, 7, 10], [4, 1, 2])])
def test_an_implicit_decoder_reads_few_coordinates(shape: list[int], sides: list[int]) -> None:
    decoder = volume(decoder="implicit", shape=shape, patch_size=1).build_decoder(5)
    assert decoder[0].sides == sides  # the most blocks, up to four, that fit along a side
    assert decoder(torch.randn(3, 5)).shape == (3, *shape)


def test_an_implicit_decoder_knows_where_a_position_is_by_its_coordinates_alone() -> None:
    decoder = volume(decoder="implicit", shape=[1, 4, 4, 4]).build_decoder(5)
    z = torch.randn(2, 5)
    small = decoder(z)
    implicit = decoder[0]
    implicit.sides = [12, 12, 12]  # a grid of thirds has the old positions in the middle of each
    assert_close(decoder(z)[:, :, 1::3, 1::3, 1::3], small)
    assert not torch.allclose(small[0], small[1]) and not torch.allclose(small[:, :, 0], small[:, :, -1])


def test_prepared_voxels_of_8_bits_are_the_same_however_a_row_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "skulls"
    prepare("skull", folder, count=10, size=16, image_size=16)
    modality = {"kind": "volume", "shape": [1, 16, 16, 16], "hidden_size": 16, "num_layers": 1}
    model = latent_model({"skull": modality})
    columns = Columns(model.latent_head.modalities)
    mapped = SampleDataset(folder, "train", columns)[Visit(0, seed=0)].cells["skull"]
    streamed = {
        sample.id: sample for sample in islice(SampleStream([StreamedSet(folder, columns)], seed=0).share(0, 1), 8)
    }
    value = read_values(model, load_split(folder, "train"), 0, ["skull"])["skull"]
    assert mapped.dtype == np.float32 and sorted(np.unique(mapped)) == [0, 1]
    assert np.array_equal(streamed["skull-0-000000"].cells["skull"], mapped) and np.array_equal(value, mapped)


def test_convolutions_start_with_the_variance_of_their_inputs() -> None:
    model = latent_model({"scan": {**SCAN, "shape": [1, 16, 16, 16], "hidden_size": 1024, "num_layers": 2}})
    first, second = (layer for layer in model.modules() if isinstance(layer, torch.nn.Conv3d))
    assert first.weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.1)
    assert second.weight.std().item() == pytest.approx((2 / (27 * 64)) ** 0.5, rel=0.1)
    first, second = (layer for layer in model.modules() if isinstance(layer, torch.nn.ConvTranspose3d))
    assert first.weight.std().item() == pytest.approx((2 / (8 * 128)) ** 0.5, rel=0.1)
    assert second.weight.std().item() == pytest.approx((2 / (8 * 64)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": [8, 8, 12]}, r"shape is \[8, 8, 12\]; expected \[C, D, H, W\]"),
        ({"patch_size": 3}, r"patch_size: got 3 for the shape \[1, 8, 8, 12\]; expected a divisor of all sides"),
        ({"spacing": 0.0}, "spacing"),
        ({"encoder": "mlp"}, "encoder is 'mlp'; expected one of 'cnn', 'none'"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        volume(**options)


def test_a_model_of_volumes_is_saved_and_loaded_and_fits_the_other_kinds(tmp_path: Path) -> None:
    model = latent_model({**DIGITS, "scan": {**SCAN, "private_size": 2}}, kind="mopoe")
    batch = {**digits_batch(), "scan": {"values": torch.rand(6, 1, 8, 8, 12)}}
    model.save_pretrained(tmp_path)
    loaded = m3ae.M3AEForGeneration.from_pretrained(tmp_path).eval()
    eps = torch.zeros(15, 6, model.latent.total_size)
    torch.testing.assert_close(loaded(batch, eps=eps).loss, model(batch, eps=eps).loss)
    scans = generate(loaded, None, {"label": "b"}, ["scan"], num_samples=2)["scan"]
    assert [scan.shape for scan in scans] == [(1, 8, 8, 12)] * 2 and 0 < scans[0].min() < scans[0].max() < 1
    assert generate(loaded, None, {"scan": scans[0]}, ["label"])["label"][0].keys() == {"a", "b", "c"}


def test_arrays_are_trained_on(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4, 8), dtype=np.uint8)
    data = m3ae.ArrayDataset({"scan": grey, "age": grey[:, 0, 0, 0, :1] / 255}, {"scan": {"hidden_size": 8}})
    assert data.modalities["scan"]["kind"] == "volume" and data.modalities["scan"]["encoder"] == "cnn"
    model = m3ae.train_generation(data, tmp_path / "run", steps=2, kind="poe", size=2)
    assert (tmp_path / "run" / "figures" / "prior_samples.png").is_file()
    whole = model.generate_modalities({"age": {"values": torch.ones(1, 1)}}, temperature=0.0)
    assert whole["scan"].shape == (1, 1, 1, 4, 4, 8)


def test_cells_of_eight_bits_are_shares() -> None:
    scan = volume()
    grey = np.full((1, 8, 8, 12), 51, np.uint8)
    np.testing.assert_allclose(scan.cell(grey), np.float32(0.2))
    np.testing.assert_allclose(scan.read([grey.tolist()], 0), 51)
    np.testing.assert_allclose(scan.read([grey], 0), np.float32(0.2))
    assert scan.read([None], 0) is None


def test_files_are_resampled_to_the_model(tmp_path: Path) -> None:
    model = latent_model({"scan": {**SCAN, "spacing": 2.0}})
    array = np.zeros((16, 16, 24), np.uint8)
    array[:8] = 255
    np.save(tmp_path / "scan.npy", array)
    scan = read_modality(model, "scan", str(tmp_path / "scan.npy"))
    assert scan.shape == (1, 8, 8, 12) and scan[:, :4].min() == 1 and scan[:, 4:].max() == 0
    with pytest.raises(ValueError, match=r"gone.nii: no volume could be read"):
        read_modality(model, "scan", str(tmp_path / "gone.nii"))
    with pytest.raises(ValueError, match=r"scan.npy has one channel, expected an array \(2, 8, 8, 12\)"):
        volume(shape=[2, 8, 8, 12]).load(tmp_path / "scan.npy")


def test_the_picture_shows_mid_planes_with_the_head_up_and_the_surface() -> None:
    voxels = np.zeros((1, 8, 8, 12), np.float32)
    voxels[0, 6:, 2:6, 4:8] = 1  # near the head
    picture = volume().drawable(voxels)
    assert picture.shape == (24, 24) and picture.min() >= 0 and picture.max() <= 1
    axial, coronal, sagittal = picture[:12, :12], picture[:12, 12:], picture[12:, :12]
    assert axial.max() == 0, "the mid plane lies below"
    assert coronal[2:4, 4:8].min() == 1 and coronal.sum() == 8
    assert sagittal[2:4, 4:8].min() == 1 and sagittal.sum() == 8
    assert picture[12:, 12:].max() > 0


def test_a_surface_is_lit_by_its_slope_and_empty_space_is_black() -> None:
    axis = torch.linspace(-1, 1, 24)
    ball = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0) < 0.64
    lit = surface(ball.float(), scale=2)
    assert lit.shape == (48, 48) and lit[0].max() == 0
    covered = (lit > 0).float().mean()
    assert covered == pytest.approx(torch.pi * (0.8 * 23 / 24) ** 2 / (4 * 1.2**2), rel=0.1)
    assert lit[12:24, 12:24].mean() > 1.5 * lit[26:36, 26:36].mean(), "the light comes from above, left"
    assert surface(torch.zeros(4, 4, 4)).max() == 0
