import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from m3ae import M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.models.modeling import M3AEModel
from m3ae.tasks.evaluation import evaluate
from m3ae.tasks.finetuning import add_adapters, merge_adapters, merged_weights
from m3ae.tasks.question_answering import QuestionAnswering
from m3ae.training.config import ConfigError, dump_config, load_config
from m3ae.training.finetuning_sections import LoraConfig
from m3ae.training.loop import train
from tests.models.tiny import tiny_of, tiny_pairs
from tests.tasks.test_question_answering import QUESTION, SPLITS
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits
from tests.training.toy import checkpoint_weights

RANK = 2


def adapted(*, noise: bool = True) -> M3AEForQuestionAnswering:
    model = tiny_of(M3AEForQuestionAnswering, id2label={0: "yes", 1: "no"})
    add_adapters(model, LoraConfig(rank=RANK, alpha=6))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if noise and ".lora_B." in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_adapters_and_the_head_learn_and_start_from_the_model_as_it_is() -> None:
    plain, model = tiny_of(M3AEForQuestionAnswering, id2label={0: "yes", 1: "no"}), adapted(noise=False)
    assert torch.equal(model(**tiny_pairs()).logits, plain(**tiny_pairs()).logits)
    linear = [name for name, layer in plain.m3ae.named_modules() if isinstance(layer, nn.Linear)]
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = {f"m3ae.{name}.lora_{factor}.default.weight" for name in linear for factor in "AB"}
    assert learning == factors | {name for name, _ in plain.named_parameters() if name.startswith("vqa_head.")}
    assert {model.parameter_group(name) for name in factors} == {"encoder.image", "encoder.text", "fusion"}
    shapes = {tuple(model.get_parameter(name).shape) for name in factors}
    assert all(RANK in shape for shape in shapes)


def test_merging_changes_nothing_but_the_names() -> None:
    model, plain = adapted(), M3AEForQuestionAnswering(adapted().config).eval()
    expected = model(**tiny_pairs()).logits
    plain.load_state_dict(merged_weights(model))
    torch.testing.assert_close(plain(**tiny_pairs()).logits, expected, atol=1e-4, rtol=1e-4)
    layer = model.m3ae.fusion.layers[0]["text"].intermediate
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 6.0 / RANK
    torch.testing.assert_close(
        plain.m3ae.fusion.layers[0]["text"].intermediate.weight, layer.base_layer.weight + update
    )
    merge_adapters(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(**tiny_pairs()).logits, plain(**tiny_pairs()).logits)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_splits(folder / "data", SPLITS)
    save_model(folder / "pretrained", M3AEForPreTraining, ["which side is there a nodule"])
    config = run(folder, folder / "run")
    train(config, QuestionAnswering.from_config(config))
    return folder


def run(folder: Path, output: Path, **finetuning: Any) -> Any:
    return tiny_finetuning(
        "question_answering",
        folder / "data",
        output,
        data=QUESTION,
        model={"path": str(folder / "pretrained")},
        finetuning={"lora": LoraConfig(rank=RANK)} | finetuning,
        training={"checkpoint_every": 1},
    )


def test_a_run_saves_a_plain_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # cannot be imported
    saved, info = M3AEForQuestionAnswering.from_pretrained(finished / "run" / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before, after = M3AEModel.from_pretrained(finished / "pretrained").state_dict(), saved.m3ae.state_dict()
    layers = {f"{name}.weight" for name, layer in saved.m3ae.named_modules() if isinstance(layer, nn.Linear)}
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed and changed <= layers, "neither embeddings nor norms nor biases"
    assert all(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= RANK for name in changed)
    results = json.loads((finished / "run" / "results.json").read_text())
    assert results["lora"] == {"rank": RANK, "alpha": 16, "dropout": 0.0}
    again = evaluate(run(finished, finished / "run").model_copy(update={"model": saved_model(finished)}))
    assert results["metrics"] == pytest.approx(again, abs=1e-5, nan_ok=True)


def saved_model(finished: Path) -> Any:
    config = run(finished, finished / "run")
    return config.model.model_copy(update={"path": str(finished / "run" / "model")})


def test_an_interrupted_run_continues_exactly(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000002")
    shutil.rmtree(tmp_path / "run" / "model")
    config = run(finished, tmp_path / "run")
    train(config, QuestionAnswering.from_config(config), resume=True)
    for name in ("model/model.safetensors", "predictions.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / "run" / name).read_bytes(), name
    left, right = (
        checkpoint_weights(folder / "run" / "checkpoints" / "step-00000002") for folder in (tmp_path, finished)
    )
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_what_cannot_be_adapted_is_explained(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"frozen: got encoders beside finetuning.lora"):
        run(finished, tmp_path, frozen="encoders")
    monkeypatch.setattr("m3ae.tasks.finetuning.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"finetuning.lora: needs peft, .*; pip install 'm3ae\[lora\]'"):
        QuestionAnswering.from_config(run(finished, tmp_path / "run"))


def test_a_config_names_it(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(run(finished, tmp_path / "run", lora=None)))
    config = load_config(path, ["finetuning.lora={rank: 4}"])
    assert config.finetuning.lora == LoraConfig(rank=4)
    with pytest.raises(ConfigError, match=r"finetuning.lora.rank: got 0 .*, expected greater than 0"):
        load_config(path, ["finetuning.lora={rank: 0}"])
