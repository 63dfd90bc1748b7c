"""Wrong files: one clear message each, and nothing of them is run."""

import pickle
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from transformers import BertConfig, BertModel

from m3ae import M3AEForPreTraining
from m3ae.transfer.checkpoints import CheckpointError
from m3ae.transfer.released import read_released
from tests.models.tiny import tiny_of
from tests.transfer.released import released_by_others, save


@pytest.fixture
def content() -> dict[str, Any]:
    return released_by_others(tiny_of(M3AEForPreTraining))


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_released(path)


class Harmful:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_does_not_run(content, tmp_path, kind: str) -> None:
    target, path = tmp_path / "was-run", tmp_path / "m3ae.ckpt"
    content["hook"] = Harmful(target)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match="Nothing of it was run" if kind != "pickle" else str(path)):
        read_released(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Harmful(target)))
    assert target.exists()  # it would have


def test_the_callbacks_of_lightning_are_passed_over(content, tmp_path, monkeypatch) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    callback = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", callback, raising=False)
    path = save(tmp_path, content | {"callbacks": {callback: {"best_model_score": torch.tensor(0.5)}}})
    monkeypatch.undo()
    assert read_released(path).settings["config"]["num_heads"] == 2


def test_a_file_cut_short(content, tmp_path) -> None:
    path = save(tmp_path, content)
    path.write_bytes(path.read_bytes()[:50_000])
    refused(path, f"{path} is cut short or damaged (50,000 bytes)")


def test_no_file_a_folder_and_another_format(tmp_path) -> None:
    refused(tmp_path / "m3ae.ckpt", "is missing; expected a file in the released format")
    refused(tmp_path, "is a folder; expected a file")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", f"{tmp_path / 'text'} ")
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "is not a PyTorch checkpoint, or is damaged")
    torch.save([1, 2], tmp_path / "list")
    refused(tmp_path / "list", "it holds no weights")


def test_a_swin_checkpoint(tmp_path) -> None:
    swin = SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,), window_size=4)
    torch.save({"model": swin.state_dict()}, tmp_path / "swin.pth")
    refused(tmp_path / "swin.pth", "is not an M3AE checkpoint: it holds the weights of a Swin transformer, with names")


def test_a_bert_checkpoint(tmp_path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertModel(BertConfig(vocab_size=9, max_position_embeddings=8, **sizes))
    torch.save(OrderedDict(bert.state_dict()), tmp_path / "pytorch_model.bin")
    refused(tmp_path / "pytorch_model.bin", "it holds the weights of a BERT-like text encoder")


def test_an_m3ae_with_a_swin_or_an_unknown_text_encoder_inside(content, tmp_path) -> None:
    state = content["state_dict"]
    vision = {name: state.pop(name) for name in list(state) if name.startswith("vision_encoder.")}
    state["vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(9, 2)
    content["hyper_parameters"]["config"]["vit"] = "swin_base_patch4_window12_384_in22k"
    refused(save(tmp_path, content), "the image encoder is 'swin_base_patch4_window12_384_in22k'")
    state |= vision
    content["hyper_parameters"]["config"]["tokenizer"] = "bert-base-uncased"
    refused(
        save(tmp_path, content), "the text encoder is neither a RoBERTa nor a BERT: its tokenizer is 'bert-base-un"
    )


def test_weights_without_their_settings(content, tmp_path) -> None:
    refused(save(tmp_path, content["state_dict"]), "has the weights of an M3AE but no hyper_parameters.config")


def test_settings_beside_the_file_state_the_heads(content, tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"roberta": {"num_attention_heads": 4}, "vision": {"heads": 8}, "x": 1}')
    settings = read_released(save(tmp_path, content)).settings
    assert (
        settings["roberta"] == {"num_attention_heads": 4}
        and settings["vision"] == {"heads": 8}
        and "x" not in settings
    )
