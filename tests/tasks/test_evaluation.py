import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from m3ae import M3AEForClassification, M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.cli import cli
from m3ae.tasks import task_class
from m3ae.training.config import dump_config
from tests.tasks.test_classification import SINGLE
from tests.tasks.test_classification import SPLITS as ROWS
from tests.tasks.test_question_answering import QUESTION, SPLITS
from tests.tasks.tiny import tiny_run
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits


def command(name: str, config: Path, *arguments: object) -> str:
    result = CliRunner().invoke(cli, [name, *map(str, (config, *arguments))])
    return result.output if result.exit_code == 0 else result.stderr.strip().splitlines()[-1]


def write_config(tmp_path: Path, task: str, splits: Any, **sections: Any) -> Path:
    config = tiny_finetuning(task, write_splits(tmp_path / "data", splits), tmp_path / "run", **sections)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_config(tmp_path, "question_answering", SPLITS, data=QUESTION)


def test_fine_tuning_and_evaluating_give_the_same_numbers(questions: Path, tmp_path: Path) -> None:
    pretrained = save_model(tmp_path / "pretrained", M3AEForPreTraining)
    printed = command("finetune", questions, f"model={pretrained}")
    assert "test/majority_accuracy" in printed and "shuffled" in printed
    run = tmp_path / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["path"] == pretrained
    assert "test/accuracy" in command("evaluate", questions, f"model={run / 'model'}")
    trained, evaluated = (json.loads((run / name / "results.json").read_text()) for name in ("", "evaluation"))
    assert trained["metrics"] == evaluated["metrics"]
    assert evaluated["answers_from"] == "checkpoint" and evaluated["model"] == str(run / "model")
    files = [run / name / "predictions.jsonl" for name in ("", "evaluation")]
    assert files[0].read_text() == files[1].read_text()


def test_another_split_and_folder(questions: Path, tmp_path: Path) -> None:
    saved = save_model(tmp_path / "model", M3AEForQuestionAnswering, id2label={0: "yes", 1: "left"})
    options = ("--split", "validation", "--output", tmp_path / "out")
    assert "validation/accuracy" in command("evaluate", questions, f"model={saved}", *options)
    assert (tmp_path / "out" / "validation_predictions.jsonl").is_file()
    (tmp_path / "out" / "results.json").write_text('"from_scratch"')
    again = ["evaluate", str(questions), f"model={saved}", *map(str, options[2:]), "--split", "dev"]
    printed = CliRunner().invoke(cli, again).stderr
    assert "has no split 'dev': it has train" in printed
    assert f"{tmp_path / 'out'} holds results.json already, which will be replaced" in printed
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("{}")
    assert "results.json was not written by m3ae, and would be replaced" in command(
        "evaluate", questions, f"model={saved}", "--output", tmp_path / "mine"
    )


def test_data_without_training_rows_are_measured_without_their_controls(tmp_path: Path) -> None:
    config = write_config(tmp_path, "question_answering", {"test": SPLITS["test"]}, data=QUESTION)
    saved = save_model(tmp_path / "model", M3AEForQuestionAnswering, id2label={0: "yes", 1: "left"})
    printed = command("evaluate", config, f"model={saved}")
    assert "test/blank_accuracy" in printed and "majority" not in printed


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (None, "error: model.path: expected the folder or hub name of a trained model to evaluate: model=FOLDER"),
        (M3AEForPreTraining, "is M3AEForPreTraining and has no vqa_head, which M3AEForQuestionAnswering needs"),
        (M3AEForClassification, "is M3AEForClassification and has no vqa_head"),
    ],
)
def test_what_cannot_be_evaluated_is_explained(questions: Path, tmp_path: Path, saved: Any, message: str) -> None:
    arguments = [] if saved is None else [f"model={save_model(tmp_path / 'model', saved)}"]
    assert message in command("evaluate", questions, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id2label": {0: "a", 1: "b"}}, "has one of the model's 2 classes ('a', 'b'); its labels are 'gel'"),
        ({"problem_type": "multi_label_classification"}, "classification.multi_label: the model in"),
    ],
)
def test_classes_of_other_data_are_explained(tmp_path: Path, options: Any, message: str) -> None:
    config = write_config(tmp_path, "classification", ROWS, **SINGLE)
    saved = save_model(tmp_path / "model", M3AEForClassification, **options)
    assert message in command("evaluate", config, f"model={saved}")


def test_commands_say_which_one_a_config_is_for(questions: Path, tmp_path: Path) -> None:
    assert "has the task question_answering: use m3ae finetune, or m3ae train" in command("pretrain", questions)
    phantoms = tmp_path / "phantoms.yaml"
    phantoms.write_text(dump_config(tiny_run(tmp_path / "phantoms", tmp_path / "run")))
    assert "has the task pretraining: use m3ae pretrain, or m3ae train" in command("finetune", phantoms)
    assert "model.path: expected the folder" in command("evaluate", phantoms)
    assert "frozen: nothing" in command("finetune", questions, "--print-config")
    assert command("train", questions, "--print-config") == command("finetune", questions, "--print-config")
    with pytest.raises(ValueError, match="unknown task 'vqa': expected one of pretraining, question_answering"):
        task_class("vqa")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "scripts").glob("*.py")), ids=lambda path: path.stem
)
def test_no_launcher_hides_a_package(path: Path) -> None:
    assert find_spec(path.stem) is None, "its folder comes first when a script beside it runs"


def test_results_that_have_no_room_are_refused_before_they_are_computed(questions: Path, tmp_path: Path) -> None:
    saved = save_model(tmp_path / "model", M3AEForQuestionAnswering, id2label={0: "yes", 1: "left"})
    (tmp_path / "taken").write_text("a file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m3ae.tasks.question_answering.QuestionAnswering.measure", None)
        assert "taken" in command("evaluate", questions, f"model={saved}", "--output", tmp_path / "taken")


def test_questions_without_a_known_answer_are_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "question_answering", SPLITS, data=QUESTION)
    saved = save_model(tmp_path / "model", M3AEForQuestionAnswering, id2label={0: "mri", 1: "ct"})
    assert "test, has an answer among the 2 of the list (mri, ct, …)" in command("evaluate", config, f"model={saved}")
