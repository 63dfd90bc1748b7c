import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from m3ae import M3AEForImageTextRetrieval, M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.data.samples import SampleDataset, Visit, trunk_columns
from m3ae.evaluation.pretraining import PreTrainingEvaluator
from m3ae.metrics.retrieval import BothWays, Found, Ranking, Relevance
from m3ae.tasks.gallery import Gallery, _spread
from m3ae.tasks.retrieval import Retrieval, chance_ranking, open_texts
from m3ae.training.loop import train
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits

# Row b has two captions, one of which row c has, too; d has the image of a. Rows e and f lack a side.
ROWS = [
    {"id": "a", "image": 10, "text": ["clear lungs"]},
    {"id": "b", "image": 60, "text": ["a large effusion on the left", "effusion"]},
    {"id": "c", "image": 110, "text": ["effusion"]},
    {"id": "d", "image": 10, "text": ["no finding"]},
    {"id": "e", "image": None, "text": ["a text alone"]},
    {"id": "f", "image": 200, "text": None},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prepared"
    return write_splits(path, {"train": ROWS, "validation": ROWS, "test": ROWS})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("pretrained"), M3AEForPreTraining, itc_weight=1.0)


def open_task(folder: Path, output: Path, pretrained: str, **sections: dict) -> Retrieval:
    config = tiny_finetuning("retrieval", folder, output, model={"path": pretrained}, **sections)
    return Retrieval.from_config(config)


@torch.no_grad()
def final(task: Retrieval) -> dict[str, float]:
    task.model.eval()
    return task.measure(task.model, Accelerator(cpu=True), "test")


def test_a_run_measures_and_leaves_the_ids_and_predictions(folder: Path, tmp_path: Path, pretrained: str) -> None:
    task = open_task(folder, tmp_path, pretrained)
    found = train(task.config, task)
    for name in ("loss", "irtr_loss", "itc_loss", "mean_recall", "text_to_image_median_rank"):
        assert f"test/{name}" in found and f"validation/{name}" in found
    assert found["test/text_to_image_queries"] == 5 and found["test/image_to_text_queries"] == 4
    assert found["test/image_to_text_recall@5"] == 1 and "test/first_stage_text_to_image_recall@1" in found
    assert found["test/image_to_text_recall@1_low"] <= found["test/image_to_text_recall@1"]
    assert (tmp_path / "test.ids.txt").read_text() == "a\nb\nc\nd\n"
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == ["a", "b#0", "b#1", "c", "d", "a", "b", "c", "d"]
    assert lines[1] | {"prediction": "", "top": [], "rank": 0} == {
        "id": "b",
        "input": {"split": "test", "row": 1},
        "direction": "text_to_image",
        "query": "b#0",
        "prediction": "",
        "top": [],
        "truth": ["b"],
        "rank": 0,
    }
    assert lines[5]["truth"] == ["a", "d"] and len(lines[5]["top"]) == 5
    assert json.loads((tmp_path / "results.json").read_text())["relevance"] == "every"
    saved = M3AEForImageTextRetrieval.from_pretrained(tmp_path / "model")
    assert saved.itc_head is not None
    assert (tmp_path / "figures" / "retrieval.png").stat().st_size > 1000


def test_every_right_item_counts_or_only_the_own_row(folder: Path, tmp_path: Path, pretrained: str) -> None:
    task = open_task(folder, tmp_path, pretrained)
    candidates = task.candidates(task.dataset("test"))
    assert candidates.text_rows == [0, 1, 1, 2, 3] and len(set(candidates.image_ids)) == 3
    found = task.rank(task.model.eval(), Accelerator(cpu=True), task.dataset("test"), candidates)[0].scores
    of_texts, of_images = candidates.judge(found, "published").relevance
    assert [of_texts.right_for(text) for text in range(5)] == [[0], [1], [1], [2], [3]]
    assert [of_images.right_for(image) for image in range(4)] == [[0], [1, 2], [3], [4]]
    of_texts, of_images = candidates.judge(found, "every").relevance
    assert [of_texts.right_for(text) for text in range(5)] == [[0, 3], [1], [1, 2], [1, 2], [0, 3]]
    assert [of_images.right_for(image) for image in range(4)] == [[0, 4], [1, 2, 3], [2, 3], [0, 4]]


def test_metrics_of_a_ranking_by_hand() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    numbers = torch.arange(3)
    found = [Found(own.__getitem__, numbers, numbers) for own in (scores, torch.eye(3))]
    own = Relevance(numbers[:, None].expand(3, 2), numbers, numbers)
    ranking = Ranking(BothWays(*found), (own, own))
    metrics = ranking.metrics()
    assert metrics["text_to_image_recall@1"] == pytest.approx(1 / 3) and metrics["text_to_image_median_rank"] == 2
    assert metrics["image_to_text_recall@1"] == 1 and metrics["text_to_image_recall@5"] == 1
    assert metrics["mean_recall"] == pytest.approx((1 / 3 + 5) / 6)
    assert ranking.ranks[0].tolist() == [1, 2, 3]
    nearest = Found(torch.tensor([[1.0, -torch.inf, 2.0]] * 3).__getitem__, numbers, numbers)
    metrics = Ranking(BothWays(nearest, found[1]), (own, own)).metrics()
    assert metrics["text_to_image_recall@1"] == pytest.approx(1 / 3), "the last"
    assert metrics["text_to_image_recall@5"] == pytest.approx(2 / 3), "the second is not found"
    assert metrics["text_to_image_median_rank"] == 2


def test_chance_is_the_mean_over_random_orders() -> None:
    pairs = torch.tensor([[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]])
    ways = (
        Relevance(pairs, torch.arange(2), torch.arange(12)),
        Relevance(pairs.flip(1), torch.arange(12), torch.arange(2)),
    )
    expected = chance_ranking(ways)
    assert expected["text_to_image_recall@1"] == pytest.approx((1 / 12 + 4 / 12) / 2)
    assert expected["image_to_text_recall@1"] == pytest.approx((1 + 3 / 2) / 12)
    torch.manual_seed(0)
    relevant = torch.tensor([[True] + [False] * 11, [True] * 4 + [False] * 8])
    best = torch.rand(4000, 2, 12).argsort(dim=2).argsort(dim=2).masked_fill(~relevant, 12).amin(2)
    for k in (1, 5, 10):
        found = float((best < k).float().mean())
        assert found == pytest.approx(expected[f"text_to_image_recall@{k}"], abs=0.02)
    assert expected["text_to_image_median_rank"] == 4  # P(rank ≤ 3) is 0.498, P(rank ≤ 4) 0.596


def test_two_stages_with_all_candidates_are_one_stage(folder: Path, tmp_path: Path, pretrained: str) -> None:
    lines = []
    for k, rule in ((None, "every"), (100, "every"), (None, "published"), (100, "published"), (1, "every")):
        found = final(open_task(folder, tmp_path, pretrained, retrieval={"rerank": k, "relevance": rule}))
        lines.append((found, [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]))
    (one, first), (two, second), (own_one, _), (own_two, _), (few, nearest) = lines
    assert one == pytest.approx(two, abs=1e-6) and own_one == pytest.approx(own_two, abs=1e-6) and one != own_one
    assert [line["rank"] for line in first] == [line["rank"] for line in second]
    assert [line["truth"] for line in first] == [line["truth"] for line in second]
    for a, b in zip(first, second, strict=True):
        assert {hit["label"]: hit["score"] for hit in a["top"]} == pytest.approx(
            {hit["label"]: hit["score"] for hit in b["top"]}, abs=1e-4
        )
    for name in ("text_to_image_recall@1", "image_to_text_recall@10"):  # a single candidate cannot change its place
        assert few[f"test/{name}"] == few[f"test/first_stage_{name}"]
    assert {None, 1} <= {line["rank"] for line in nearest}, "what is not among the candidates is not found"


def test_contrast_alone_is_trained_and_ranked_without_the_matching_head(
    folder: Path, tmp_path: Path, pretrained: str
) -> None:
    both = final(open_task(folder, tmp_path / "both", pretrained))
    alone = {"path": pretrained, "overrides": {"num_negatives": 0}}
    config = tiny_finetuning("retrieval", folder, tmp_path, model=alone, retrieval={"rerank": 0})
    task = Retrieval.from_config(config)
    found = final(task)
    for name in ("text_to_image_recall@1", "image_to_text_median_rank", "mean_recall"):
        assert found[f"test/{name}"] == both[f"test/first_stage_{name}"]
    assert "test/irtr_loss" not in found and not any(name.startswith("test/first_stage") for name in found)
    assert found["test/loss"] == found["test/itc_loss"] == both["test/itc_loss"]
    train(config, task)


def test_the_first_stage_is_exact(folder: Path, tmp_path: Path, pretrained: str) -> None:
    task = open_task(folder, tmp_path, pretrained, retrieval={"rerank": 2})
    dataset, accelerator = task.dataset("test"), Accelerator(cpu=True)
    with torch.no_grad():
        _, two = task.rank(task.model.eval(), accelerator, dataset, task.candidates(dataset))
        exhaustive = open_task(folder, tmp_path, pretrained)
        _, one = exhaustive.rank(task.model, accelerator, dataset, task.candidates(dataset), first_stage=True)
    for nearest, everything in zip(two.scores, one.scores, strict=True):
        for found, ordered in zip(nearest.best(9), everything.best(9), strict=True):
            assert [score for _, score in found] == pytest.approx([score for _, score in ordered[: len(found)]])
            assert {number for number, _ in found} == {number for number, _ in ordered[: len(found)]}
            assert len({round(score, 6) for _, score in found}) == 2


def test_all_that_equals_what_is_found_is_listed() -> None:
    numbers, scores = torch.tensor([[1, 0], [2, 1]]), torch.tensor([[0.5, 0.9], [0.8, 0.1]])
    found = Found(partial(_spread, 3, numbers, scores), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1, 2, 1]))
    first, second, third = ([number for number, _ in best] for best in found.best(3))
    assert first == third == [0, 1, 2] and second == [3, 1, 2]
    assert [score for _, score in found.best(9)[1]] == pytest.approx([0.8, 0.1, 0.1, 0.1])


def test_processes_share_the_images(folder: Path, tmp_path: Path, pretrained: str) -> None:
    task = open_task(folder, tmp_path, pretrained)
    dataset = task.dataset("test")
    candidates = task.candidates(dataset)
    parts = []
    for index, processes in ((0, 1), (0, 2), (1, 2)):
        process = SimpleNamespace(
            num_processes=processes,
            process_index=index,
            device=torch.device("cpu"),
            autocast=Accelerator(cpu=True).autocast,
            reduce=lambda share, reduction: share,
        )
        loaded = []

        def load(place: int, loaded=loaded):
            loaded.append(place)
            return dataset.first(candidates.indices[place])

        gallery = Gallery(
            task.model.m3ae, candidates.texts, candidates.image_ids, load, task.evaluation_collator, process, 2
        )
        found = gallery.match_all(task.model.eval().score).text_to_image
        parts.append((found.scores(found.queries)[:, found.candidates], loaded))
    assert [loaded for _, loaded in parts] == [[0, 1, 2], [0, 2], [1]]  # the image of d is that of a
    torch.testing.assert_close(parts[1][0] + parts[2][0], parts[0][0], atol=1e-6, rtol=1e-5)
    assert torch.equal(parts[0][0][:, 0], parts[0][0][:, 3]) and torch.equal(parts[0][0][2], parts[0][0][3])


def test_a_pre_training_report_and_an_evaluation_measure_the_same(
    tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["clear", "effusion", "nodule", "mass", "fracture", "normal"]
    rows = [{"id": word, "image": 40 * i, "text": [f"{word} {i}"]} for i, word in enumerate(words)]
    folder = write_splits(tmp_path / "data", dict.fromkeys(("train", "validation", "test"), rows))
    task = open_task(folder, tmp_path / "run", pretrained)
    dataset = SampleDataset(folder, "test", trunk_columns(["image"], "text"))
    accelerator = Accelerator(cpu=True)
    evaluator = PreTrainingEvaluator(dataset, task.evaluation_collator, accelerator, batch_size=2)
    model = M3AEForPreTraining.from_pretrained(pretrained).eval()
    with torch.no_grad():
        reported = evaluator.retrieval(model, limit=10)
        monkeypatch.setattr("m3ae.tasks.gallery.IMAGES_AT_ONCE", 4)  # of six
        split = task.dataset("test")
        ranking, _ = task.rank(task.model.eval(), accelerator, split, task.candidates(split))
    evaluated = ranking.metrics()
    names = {name for name in reported if name.startswith(("text_to_image_", "image_to_text_"))}
    assert len(names) == 8 and {name: reported[name] for name in names} == {name: evaluated[name] for name in names}
    assert 0 < reported["text_to_image_recall@5"] < 1, "what is compared is no constant"


def test_training_batches_name_equal_images_and_texts(folder: Path, tmp_path: Path, pretrained: str) -> None:
    task = open_task(folder, tmp_path, pretrained)
    assert len(task.train_dataset) == 5
    batch = task.collate([task.train_dataset[Visit(index, seed=0)] for index in (0, 3, 2, 4)])
    ids = batch["image_ids"].tolist()
    assert ids[0] == ids[1] != ids[2] and len(set(batch["text_ids"].tolist())) == 4
    assert batch["image_present"].tolist() == [True, True, True, False]
    assert task.model(**batch).loss.isfinite()


def test_bad_input_is_explained(folder: Path, tmp_path: Path, pretrained: str) -> None:
    without = save_model(tmp_path / "without", M3AEForPreTraining)
    with pytest.raises(ValueError, match=r"rerank: got 5, but the model has no contrastive head.*itc_weight"):
        open_task(folder, tmp_path, without, retrieval={"rerank": 5})
    with pytest.raises(ValueError, match=r"rerank: got None with num_negatives=0.*expected retrieval.rerank=0"):
        alone = {"path": pretrained, "overrides": {"num_negatives": 0}}
        Retrieval.from_config(tiny_finetuning("retrieval", folder, tmp_path, model=alone))
    with pytest.raises(ValueError, match="retrieval needs image_columns and a text_column"):
        open_task(folder, tmp_path, pretrained, data={"text_column": None})
    answering = save_model(tmp_path / "answering", M3AEForQuestionAnswering, id2label={0: "yes"})
    with pytest.raises(ValueError, match="has no itm_head"):
        open_task(folder, tmp_path, answering)
    alone = write_splits(tmp_path / "alone", dict.fromkeys(("train", "validation", "test"), ROWS[4:5]))
    with pytest.raises(ValueError, match=r"none of the rows of .*, train, has both image and text"):
        open_task(alone, tmp_path, pretrained)
    for split in ("validation", "test"):
        splits = dict.fromkeys(("train", "validation", "test"), ROWS) | {split: ROWS[4:]}
        with pytest.raises(ValueError, match=rf"none of the rows of .*, {split}, has both image and text"):
            open_task(write_splits(tmp_path / f"no-{split}", splits), tmp_path, pretrained)
    one_image, one_text = [ROWS[0], ROWS[3]], [ROWS[0], ROWS[0] | {"id": "g", "image": 90}]
    for name, rows, counts in (("image", one_image, "1 .* and 2"), ("text", one_text, "2 .* and 1")):
        splits = {"train": rows, "validation": ROWS, "test": ROWS}
        with pytest.raises(ValueError, match=rf"train, with image and text have {counts} different texts, expected"):
            open_task(write_splits(tmp_path / f"one-{name}", splits), tmp_path, pretrained)
    silent = write_splits(tmp_path / "silent", {"train": [{"id": "a", "image": 1, "text": ["", ""]}]})
    with pytest.raises(ValueError, match=r"no row of .*, train, has a text"):
        open_texts(tiny_finetuning("retrieval", silent, tmp_path), "train")
