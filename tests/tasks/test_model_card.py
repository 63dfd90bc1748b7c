from pathlib import Path

from m3ae import M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.data.prepared import Manifest, SplitInfo
from m3ae.tasks.model_card import metrics_table, write_model_card
from tests.models.tiny import tiny_of
from tests.tasks.tiny import tiny_run


def card(folder: Path, model_class: type, source: str, metrics: dict[str, float]) -> str:
    training = {"max_steps": 7, "batch_size": 4, "gradient_accumulation_steps": 1}
    config = tiny_run(folder / "data", folder / "trial", training=training)
    split = SplitInfo(rows=1234, images={}, texts=1, rejected=0, shards={})
    manifest = Manifest(source=source, options={}, rows_sha256="", splits={"train": split}, rejected={}, dropped={})
    write_model_card(folder, config, tiny_of(model_class), manifest, metrics)
    return (folder / "README.md").read_text()


def test_card_of_a_run(tmp_path) -> None:
    counts = {"test/questions": 451, "test/pos_type_questions": 59}
    text = card(tmp_path, M3AEForQuestionAnswering, "vqa_rad", {"test/accuracy": 0.62} | counts)
    for part in (
        "# M3AE, trial",
        "7 steps of 4 samples",
        "`vqa_rad`: train 1,234",
        "CC0 1.0",
        "m3ae-question-answering",
    ):
        assert part in text
    assert "| test | accuracy | 0.62 |" in text and "schedule" not in text
    assert "| test | questions | 451 |" in text and "pos_type_questions" not in text


def test_card_of_a_pretrained_model_and_an_unknown_source(tmp_path) -> None:
    text = card(tmp_path, M3AEForPreTraining, "ours", {"test/mlm": 1.0, "test/shuffled_mlm": 2.0})
    assert "separate schedule, 7 steps" in text and "not recorded; ask its publishers" in text
    assert "| test | mlm | 1 | 2 |" in text and "shuffled" in text


def test_no_metrics() -> None:
    assert metrics_table({}) == "Not measured yet."
