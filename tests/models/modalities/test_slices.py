"""The kind `slices`: the scene is the product over any number of slices in any order, and is drawn at any pose."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import m3ae
from m3ae.data.samples import Visit
from m3ae.evaluation.latent import LatentEvaluator
from m3ae.figures import draw_modalities, render
from m3ae.inference import generate
from m3ae.inference.generation import encode_modalities, read_row
from m3ae.models import gaussians
from m3ae.models.modalities import BatchOptions
from m3ae.tasks.generation import Generation
from m3ae.training.config import GenerationConfig
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from tests.data.small_folder import write_splits
from tests.models.tiny_latent import latent_model, rows, without
from tests.tasks.test_generation import run
from tests.tasks.test_pretraining import Killed, killing

POSES = [[-0.5, 0.0], [0.0, 0.5], [1.0, -1.0]]
SCAN: dict[str, Any] = {
    "kind": "slices",
    "encoder": "mlp",
    "decoder": "mlp",
    "shape": [1, 4, 4],
    "poses": POSES,
    "num_slices": 4,
    "hidden_size": 16,
    "private_size": 2,
}
LABEL = {"kind": "label", "labels": ["a", "b", "c"], "hidden_size": 8, "num_layers": 1}
MODALITIES = {"scan": SCAN, "label": LABEL}


def batch(size: int = 3, slices: int = 4) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    scan = {
        "pixel_values": torch.rand(size, slices, 1, 4, 4, generator=draw),
        "poses": torch.rand(size, slices, 2, generator=draw) * 2 - 1,
    }
    return {"scan": scan, "label": {"labels": torch.arange(size) % 3}}


def some(parts: dict[str, Tensor], numbers: list[int]) -> dict[str, dict[str, Tensor]]:
    return {"scan": {name: values[:, numbers] for name, values in parts.items()}}


def expert(model: m3ae.M3AEForGeneration, scan: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """What the slices say of z, without the prior."""
    number, shared = model.latent.experts.index("scan"), model._infer_experts(scan).shared
    return shared.mu[number], shared.logvar[number]


def test_each_slice_starts_with_the_deviation_of_the_configuration() -> None:
    one, tenth = (latent_model(MODALITIES, kind="poe", initial_std=std) for std in (1.0, 0.1))
    scan = batch()["scan"]
    means, logvars = zip(expert(one, some(scan, [0, 1, 2])), expert(tenth, some(scan, [0, 1, 2])), strict=True)
    torch.testing.assert_close(means[0], means[1])
    torch.testing.assert_close(logvars[1], logvars[0] + 2 * torch.tensor(0.1).log())


def test_the_expert_is_the_product_of_the_slices_in_any_order() -> None:
    model, scan = latent_model(MODALITIES, kind="poe"), batch()["scan"]
    single = [expert(model, some(scan, [number])) for number in range(4)]
    precisions = [(-logvar).exp() for _, logvar in single]
    precision = sum(precisions)
    mean = sum(p * mu for p, (mu, _) in zip(precisions, single, strict=True)) / precision
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        torch.testing.assert_close(expert(model, some(scan, order)), (mean, -precision.log()))
    q = model.infer_latent({"scan": scan}).shared  # and the head multiplies it by N(0, I)
    torch.testing.assert_close(q.components.logvar[0], -(precision + 1).log())
    torch.testing.assert_close(q.components.mu[0], mean * precision / (precision + 1))
    stacked = gaussians.Gaussian(*(torch.stack(values) for values in zip(*single, strict=True)))
    everyone = torch.ones(1, 4, 3, dtype=torch.bool)
    torch.testing.assert_close(q.components, gaussians.product_of_experts(stacked, everyone))


def test_slices_that_come_one_after_the_other_say_what_all_say_at_once() -> None:
    model, scan = latent_model(MODALITIES), batch()["scan"]
    first, rest = expert(model, some(scan, [0])), expert(model, some(scan, [1, 2, 3]))
    pair = gaussians.Gaussian(*(torch.stack(values) for values in zip(first, rest, strict=True)))
    joined = gaussians.product_of_experts(pair, torch.ones(1, 2, 3, dtype=torch.bool), "never")
    torch.testing.assert_close(expert(model, {"scan": scan}), (joined.mu[0], joined.logvar[0]))


def test_a_joint_head_divides_by_the_prior_among_slices_too() -> None:
    model, scan = latent_model(MODALITIES, kind="joint", objective="jmvae"), batch()["scan"]
    assert model.latent.prior_expert == "divided"
    model.latent_head.experts["scan"].output.weight.data.zero_()  # every slice is N(0, I), which says nothing
    model.latent_head.experts["scan"].output.bias.data.zero_()
    torch.testing.assert_close(expert(model, {"scan": scan}), (torch.zeros(3, 5), torch.zeros(3, 5)))
    assert model(batch()).loss.isfinite()


def test_padding_and_slices_that_are_not_given_do_not_count() -> None:
    model, whole = latent_model(MODALITIES), batch()
    scan = whole["scan"]
    padded = {
        "pixel_values": torch.cat([scan["pixel_values"], torch.full((3, 2, 1, 4, 4), torch.nan)], 1),
        "poses": torch.cat([scan["poses"], torch.full((3, 2, 2), torch.nan)], 1),
        "slice_mask": torch.arange(6).lt(4).expand(3, 6),
    }
    eps = torch.randn(1, 3, model.latent.total_size)
    expected = model.elbo(whole, joint=True, eps=eps)
    got = model.elbo({**whole, "scan": padded}, joint=True, eps=eps)
    torch.testing.assert_close(got.bound, expected.bound)
    torch.testing.assert_close(got.log_likelihood["scan"], expected.log_likelihood["scan"])
    given = torch.arange(4).lt(2).expand(3, 4)
    torch.testing.assert_close(expert(model, {"scan": {**scan, "given": given}}), expert(model, some(scan, [0, 1])))
    changed = {**scan, "given": given, "poses": scan["poses"].clone()}
    changed["poses"][:, 3] *= -1  # is decoded, and therefore counts in the likelihood
    z = torch.randn(3, model.latent.total_size)
    likelihood, other = (model.log_likelihoods({"scan": part})["scan"](z) for part in (scan, changed))
    assert (likelihood != other).all()


def test_the_likelihood_is_the_sum_over_the_slices_at_their_poses() -> None:
    model, scan = latent_model({**MODALITIES, "scan": {**SCAN, "scale": 0.5}}), batch()["scan"]
    z = torch.randn(2, 3, model.latent.total_size)
    means = model.decode(z, {"scan": scan["poses"]})["scan"]
    assert means.shape == (2, 3, 4, 1, 4, 4)
    expected = torch.distributions.Normal(means, 0.5).log_prob(scan["pixel_values"]).sum((2, 3, 4, 5))
    torch.testing.assert_close(model.log_likelihoods({"scan": scan})["scan"](z), expected)
    one = model.decode(z[:, 1:2], {"scan": scan["poses"][1, 2:3]})["scan"]
    torch.testing.assert_close(one[:, 0, 0], means[:, 1, 2])
    torch.testing.assert_close(model.decode(z)["scan"], model.decode(z, {"scan": POSES, "label": None})["scan"])


def test_poses_have_a_gradient_in_encoder_and_decoder() -> None:
    model, scan = latent_model(MODALITIES), batch()["scan"]
    poses = scan["poses"].requires_grad_()
    expert(model, {"scan": scan})[0].sum().backward()
    assert (poses.grad.abs().amax(-1) > 0).all()
    asked = torch.tensor(POSES, requires_grad=True)
    head = model.latent_head
    seen = head.modalities["scan"].queried(torch.zeros(3, 7), asked)
    head.decoders["scan"](seen.flatten(0, 1)).sum().backward()
    assert (asked.grad != 0).all()
    exchanged = {**scan, "poses": poses.roll(1, 1)}
    assert not torch.allclose(expert(model, {"scan": exchanged})[0], expert(model, {"scan": scan})[0])


def test_a_sample_without_slices_and_a_batch_of_one() -> None:
    model, whole = latent_model(MODALITIES, kind="mopoe"), batch()
    present = torch.tensor([[True, False, True], [True, True, False]])
    mixed = without(whole, present)
    eps = torch.randn(3, 3, model.latent.total_size)
    bound = model.elbo(mixed, eps=eps).bound
    parts = [{"scan", "label"}, {"label"}, {"scan"}]
    for row, names in enumerate(parts):
        alone = {name: rows(whole, [row])[name] for name in names}
        torch.testing.assert_close(model.elbo(alone, eps=eps[:, [row]]).bound, bound[[row]])


def test_a_visit_draws_which_slices_are_shown_and_given() -> None:
    modality = latent_model(MODALITIES).latent_head.modalities["scan"]
    draw = np.random.default_rng(0)
    scenes = [m3ae.Scene(draw.random((count, 1, 4, 4)), draw.uniform(-1, 1, (count, 2))) for count in (1, 3, 9)]
    cells = [*map(modality.cell, scenes), None]

    def visits(numbers: list[int], training: bool, seed: int) -> dict[str, Tensor]:
        draws = [np.random.default_rng([seed, number]) for number in numbers]
        return modality.batch([cells[number] for number in numbers], BatchOptions(training=training), draws)

    whole = visits([0, 1, 2, 3], False, 0)
    assert whole["slice_mask"].sum(1).tolist() == [1, 3, 9, 0] and torch.equal(whole["given"], whole["slice_mask"])
    torch.testing.assert_close(whole["pixel_values"][2], torch.from_numpy(cells[2].images))
    counts, shown = set(), set()
    for seed in range(60):
        drawn, again = visits([0, 1, 2, 3], True, seed), visits([2, 0], True, seed)
        assert all(torch.equal(drawn[name][[2, 0]], again[name]) for name in drawn)  # whatever else is in the batch
        assert drawn["slice_mask"].sum(1).tolist() == [1, 3, 4, 0] and not drawn["given"][3].any()
        assert (drawn["given"] <= drawn["slice_mask"]).all() and drawn["given"][:3, 0].all()
        counts.add(int(drawn["given"][2].sum()))
        for image, pose in zip(drawn["pixel_values"][2], drawn["poses"][2], strict=True):
            (number,) = (number for number in range(9) if np.array_equal(cells[2].images[number], image))
            assert np.array_equal(cells[2].poses[number], pose)
            shown.add(number)
    assert counts == {1, 2, 3, 4} and shown == set(range(9))


def test_scenes_come_from_arrays_of_a_column_and_from_volumes() -> None:
    modality = latent_model({"scan": {**SCAN, "poses": [[-1.0], [1.0]]}}).latent_head.modalities["scan"]
    volume = np.random.default_rng(0).random((1, 5, 4, 4)).astype(np.float32)
    scene = modality.read([volume], seed=3)
    assert np.array_equal(scene.images[2], volume[:, 2]) and scene.poses[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    packed = np.concatenate([scene.poses, scene.images.reshape(5, -1)], 1)
    again = modality.read([packed], seed=3)
    assert all(np.array_equal(*pair) for pair in zip(again, scene, strict=True))
    assert modality.read([None], seed=3) is None
    assert modality.read([(volume * 255).astype(np.uint8)], seed=3).images.dtype == np.uint8
    eight = modality.cell(m3ae.Scene((scene.images * 255).astype(np.uint8), scene.poses))
    values = modality.batch([eight], BatchOptions(), [np.random.default_rng(0)])["pixel_values"][0]
    assert torch.equal(values[:5], torch.from_numpy(eight.images).float() / 255)
    for value in (scene, scene.images):
        assert modality.drawable(value).shape == (8, 12, 1)
        modality.draw(Figure().subplots(), modality.drawable(value))
    assert np.array_equal(modality.drawable(scene)[4:, :4, 0], scene.images[3, 0])


@pytest.mark.parametrize(
    ("images", "poses", "message"),
    [
        (np.zeros((2, 1, 4, 4)), np.zeros((2, 3)), r"got images \(2, 1, 4, 4\) with poses \(2, 3\), expected"),
        (np.zeros((2, 1, 4, 5)), np.zeros((2, 2)), r"expected \(S, 1, 4, 4\) with \(S, 2\)"),
        (np.zeros((0, 1, 4, 4)), np.zeros((0, 2)), "at least one slice"),
        (np.zeros((1, 1, 4, 4)), np.full((1, 2), 30), "poses lie in 30 to 30, expected -1 to 1: divide"),
        (np.full((1, 1, 4, 4), 2), np.zeros((1, 2)), "images lie in 2 to 2, expected 0 to 1"),
        (np.full((1, 1, 4, 4), np.nan), np.zeros((1, 2)), "images lie in nan to nan"),
    ],
)
def test_scenes_that_do_not_fit_are_refused(images: np.ndarray, poses: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_model(MODALITIES).latent_head.modalities["scan"].cell(m3ae.Scene(images, poses))


def test_what_does_not_fit_is_explained() -> None:
    model = latent_model(MODALITIES)
    with pytest.raises(ValueError, match=r"got pixel_values \(3, 4, 1, 4, 4\), poses None; expected"):
        model({"scan": {"pixel_values": torch.zeros(3, 4, 1, 4, 4)}})
    with pytest.raises(ValueError, match=r"scan: got poses \(1, 3\), expected \(Q, 2\)"):
        model.decode(torch.zeros(1, 7), {"scan": [[0, 0, 0]]})
    with pytest.raises(ValueError, match="label is of kind label, which has no poses"):
        model.decode(torch.zeros(1, 7), {"label": [[0, 0]]})
    with pytest.raises(ValueError, match="scan is of kind slices: expected Scene, got str"):
        model.latent_head.modalities["scan"].cell("x")
    with pytest.raises(
        ValueError, match=r"scan.poses is \[\[0\], \[0, 1\]\]; expected poses with equally many numbers"
    ):
        latent_model({"scan": {**SCAN, "poses": [[0], [0, 1]]}})


def scenes(count: int) -> list[m3ae.Scene | None]:
    draw = np.random.default_rng(1)
    sizes = [int(size) for size in draw.integers(1, 7, count)]
    made = [m3ae.Scene(draw.random((size, 1, 12, 12)), draw.uniform(-1, 1, (size, 2))) for size in sizes]
    return [None, *made[1:]]


def test_scenes_in_memory_are_learnt_saved_and_drawn_at_a_pose(tmp_path: Path) -> None:
    options = {"hidden_size": 16, "num_slices": 3}
    data = m3ae.ArrayDataset({"scan": scenes(8), "age": np.ones((8, 1)) * np.arange(8)[:, None]}, {"scan": options})
    model = m3ae.train_generation(data, tmp_path / "run", validation=data, steps=3, batch_size=4, size=3)
    assert (tmp_path / "run" / "figures" / "cross_generation.png").is_file()
    loaded = m3ae.M3AEForGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    given, asked = {"scan": data[Visit(5)].cells["scan"]}, {"scan": np.zeros((2, 2)), "age": None}
    one, other = (generate(own, None, given, asked, num_samples=2, seed=4) for own in (model, loaded))
    assert [array.shape for array in other["scan"]] == [(2, 1, 12, 12)] * 2 and other["age"][0].shape == (1,)
    np.testing.assert_array_equal(one["scan"], other["scan"])
    many = m3ae.Scene(np.zeros((20, 1, 12, 12)), np.zeros((20, 2)))
    assert encode_modalities(loaded, None, {"scan": many})["scan"]["given"].sum() == 20  # all that a person gives


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: five slices a row as arrays (S, P + C·H·W)."""
    draw = np.random.default_rng(0)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number in range(24):
        packed = np.concatenate([draw.uniform(-1, 1, (5, 2)), draw.random((5, 16))], 1).astype(np.float32)
        cells = {"label": "abc"[number % 3]} | ({} if number == 3 else {"scan": packed})
        name = "train" if number < 14 else "validation" if number < 19 else "test"
        splits[name].append({"id": f"r{number}", "text": ["A."], "labels": None, **cells})
    return write_splits(tmp_path_factory.mktemp("data") / "scans", **splits)


def test_a_config_learns_slices_and_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    whole, parts = (run(folder, tmp_path / name, MODALITIES) for name in ("whole", "parts"))
    train(whole, Generation.from_config(whole))
    task = Generation.from_config(parts)
    task.collate = killing(task.collate, 4)
    with pytest.raises(Killed):
        train(parts, task)
    train(parts, Generation.from_config(parts), resume=True)
    models = [m3ae.M3AEForGeneration.from_pretrained(tmp_path / name / "model") for name in ("whole", "parts")]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    ends = [read_metrics(tmp_path / name / "metrics.jsonl")[-1]["test/nll_scan"] for name in ("whole", "parts")]
    assert ends[0] == ends[1]


def test_a_report_has_the_likelihood_of_slices(folder: Path, tmp_path: Path) -> None:
    task = Generation.from_config(run(folder, tmp_path / "run", MODALITIES))
    learnt, judged = (list(task.batches(task.dataset(name), range(5))) for name in ("train", "test"))
    report = LatentEvaluator(task.model.eval(), learnt, judged, GenerationConfig(importance_samples=[2])).evaluate()
    whole = report.subsets[-1]
    assert whole.given == ["label", "scan"] and whole.log_likelihood["scan"] < 0
    assert "scan" in report.permutation and "scan" not in whole.reconstruction


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "volumes.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0].replace("steps=20", "steps=2"), scope)
    assert scope["drawn"]["scan"][0].shape == (2, 1, 16, 16) and scope["drawn"]["age"][0].shape == (1,)


def test_a_row_of_slices_is_drawn_beside_generated_ones(folder: Path) -> None:
    """As the app's tab does."""
    model = latent_model(MODALITIES)
    given = read_row(model, folder, "train", "r5", ["scan"])
    assert given["scan"].images.shape == (5, 1, 4, 4)
    samples = generate(model, None, given, ["scan", "label"], num_samples=2)
    shown = {name: [given.get(name), *samples[name]] for name in samples}
    assert render(draw_modalities(shown, model.latent_head.modalities, ["row", "1", "2"])).width > 100
