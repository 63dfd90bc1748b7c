"""From the released format into ours and back."""

import json
import re

import pytest
import torch
from transformers import AutoProcessor, BertTokenizer

from m3ae import M3AEConfig
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.text_encoder import special_ids
from m3ae.transfer.checkpoints import CheckpointError
from m3ae.transfer.convert import TASKS, build, choose_task, convert, read_answers, release, released_content
from m3ae.transfer.names import convert_name, release_name, why_unused
from m3ae.transfer.released import Released, infer_config, read_released
from tests.models.tiny import tiny_config, tiny_of
from tests.transfer.released import UNREAD, released_by_others, save, word_tokenizer

LABELS = dict(enumerate(["yes", "no", "left"]))
HEADS = {"vision": {"heads": 2}}  # tiny's width of 32 would make none of CLIP's 64


def released(task: str, **overrides: object) -> Released:
    content = released_by_others(tiny_of(TASKS[task], **overrides))
    return Released(content["state_dict"], content["hyper_parameters"] | HEADS)


def same_weights(one: M3AEPreTrainedModel, other: M3AEPreTrainedModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_identical(tmp_path, task: str, dtype: torch.dtype) -> None:
    options = {"id2label": LABELS, "itc_weight": 0.5, "schedule": "joint", "mim_layer": -1}
    model = tiny_of(TASKS[task], **options).to(dtype)
    model.save_pretrained(tmp_path / "ours")
    report = release(tmp_path / "ours", tmp_path / "files" / "m3ae.ckpt")
    assert report.model == type(model).__name__
    back = convert(tmp_path / "files" / "m3ae.ckpt", tmp_path / "back")
    assert back.model == report.model and not back.left_out
    loaded = TASKS[task].from_pretrained(tmp_path / "back")
    assert same_weights(model, loaded)
    assert {name: getattr(loaded.config, name) for name in options} == options


@pytest.mark.parametrize("task", TASKS)
def test_every_size_is_inferred(task: str) -> None:
    overrides = {
        "image_config": {"image_size": 48, "patch_size": 16, "num_hidden_layers": 3, "mlp_ratio": 2.0},
        "text_config": {"vocab_size": 77, "num_hidden_layers": 1, "intermediate_size": 40},
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "mim_layer": -1,
        "mask_ratio": 0.5,
        "norm_pix_loss": False,
        "decoder_num_hidden_layers": 2,
        "id2label": LABELS,
    }
    model = tiny_of(TASKS[task], **overrides)
    content = released_by_others(model)
    settings = content["hyper_parameters"] | HEADS | {"roberta": {"num_attention_heads": 2}}
    converted, report = build(Released(content["state_dict"], settings))
    assert type(converted) is TASKS[task] and same_weights(model, converted)
    theirs, ours = converted.config.to_dict(), model.config.to_dict()
    assert {key for key in ours if ours[key] != theirs[key]} <= {"id2label", "label2id", "dtype"}
    left_out = {name for names in report.left_out.values() for name in names}
    assert left_out == UNREAD.keys() and len(report.mapped) == len(content["state_dict"]) - len(UNREAD)


BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
} | {
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}


def test_a_checkpoint_with_a_bert(tmp_path) -> None:
    model = tiny_of(TASKS["pretraining"], text_config=BERT)
    content = released_by_others(model)
    assert content["hyper_parameters"]["config"]["tokenizer"] == "bert-base-uncased"
    content["hyper_parameters"] |= {**HEADS, "roberta": {"num_attention_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps({**HEADS, "roberta": {"num_attention_heads": 2}}))
    file, words = save(tmp_path, content), [f"word{number}" for number in range(35)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate([*special, *words])})
    tokenizer.save_pretrained(tmp_path / "bert")
    convert(file, tmp_path / "converted", tokenizer=str(tmp_path / "bert"))
    loaded = TASKS["pretraining"].from_pretrained(tmp_path / "converted").eval()
    assert same_weights(loaded, model)
    assert loaded.config.mask_token_id == 4 and special_ids(loaded.config.text_config) == [0, 2, 3]
    batch = {"pixel_values": torch.zeros(1, 3, 32, 32), "input_ids": torch.full((1, 24), 7)}
    assert torch.equal(loaded.m3ae(**batch).pooler_output, model.m3ae(**batch).pooler_output)
    with pytest.raises(ValueError, match="has a BERT, whose special tokens no weight shows: give --tokenizer"):
        convert(file, tmp_path / "without")


def test_a_text_encoder_that_the_released_format_lacks(tmp_path) -> None:
    tiny_of(TASKS["pretraining"], text_config=BERT | {"model_type": "electra"}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="has a text encoder of the type electra and 1 views; the released format has"
    ):
        release(tmp_path, tmp_path / "m3ae.ckpt")


def test_an_image_encoder_that_the_released_format_lacks(tmp_path) -> None:
    image = {"num_registers": 2, "class_token": False}
    tiny_of(TASKS["pretraining"], image_config=image).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has an image encoder with class_token False, num_registers 2; the released"):
        release(tmp_path, tmp_path / "m3ae.ckpt")


def test_heads_of_attention_without_a_word_on_them() -> None:
    state = released("pretraining", text_config={"num_attention_heads": 4}, num_attention_heads=4).state
    settings = {"config": {"num_heads": 4, "mim_layer": 1, "mim_decoder_num_heads": 2}}
    with pytest.raises(ValueError, match="attention heads"):
        infer_config(Released(state, settings))  # 32 / 64
    assert infer_config(Released(state, settings | HEADS)).text_config.num_attention_heads == 4
    del settings["config"]["num_heads"]
    with pytest.raises(CheckpointError, match="has no num_heads, which no weight shows"):
        infer_config(Released(state, settings | HEADS))


def test_names_translate_both_ways() -> None:
    name = "multi_modal_vision_layers.11.crossattention.output.LayerNorm.weight"
    assert convert_name(name) == "m3ae.fusion.layers.11.image.cross_attention.norm.weight"
    assert convert_name("vision_encoder.visual.transformer.resblocks.0.ln_3.weight") is None
    assert convert_name("vision_encoder.ln_final.bias") is None and why_unused("vision_encoder.ln_final.bias")
    for task in TASKS:
        for ours in tiny_of(TASKS[task]).state_dict():
            assert convert_name(release_name(ours)) == ours


def test_unknown_and_missing_parameters_are_named() -> None:
    known = released("question_answering")
    extra = {"vqa_head.4.weight": torch.zeros(2), "gate": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=re.escape("2 parameters of no known M3AE: vqa_head.4.weight, gate")):
        build(Released(known.state | extra, known.settings))
    state = dict(known.state)
    del state["multi_modal_vision_pooler.dense.bias"]
    state["vqa_head.1.bias"] = torch.zeros(3)
    state["language_encoder.gate"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        build(Released(state, known.settings))
    assert str(caught.value) == (
        "The checkpoint does not make a M3AEForQuestionAnswering: multi_modal_vision_pooler.dense.bias is missing; "
        "language_encoder.gate is unknown; vqa_head.1.bias is (3,), expected (64,)."
    )


def test_the_task_is_what_the_file_was_trained_for() -> None:
    files = {task: released(task) for task in TASKS}
    assert {task: choose_task(file) for task, file in files.items()} == {task: task for task in TASKS}
    assert choose_task(files["pretraining"], "retrieval") == "retrieval"
    message = "no head for 'classification'; it has those for question_answering."
    with pytest.raises(CheckpointError, match=re.escape(message)):
        choose_task(files["question_answering"], "classification")
    two = files["question_answering"].state | files["classification"].state
    weights = dict.fromkeys(("vqa", "cls"), 1)
    with pytest.raises(CheckpointError, match="choose a task: question_answering, classification"):
        choose_task(Released(two, {"config": {"loss_names": weights}}))
    assert choose_task(Released(two, {"config": {"loss_names": weights | {"vqa": 0}}})) == "classification"
    every = two | files["pretraining"].state
    model, report = build(Released(every, files["pretraining"].settings))
    assert type(model) is TASKS["pretraining"] and report.left_out["another task's vqa_head"][0] == "vqa_head.0.weight"
    assert "the file can also be converted for question_answering, classification, retrieval" in report.remarks


def test_the_fine_tuned_score_replaces_row_1_of_the_matching_head() -> None:
    file = released("retrieval")
    file.state["irtr_head.weight"] = file.state["irtr_head.weight"] + 1
    frozen = file.state["itm_head.fc.weight"]
    model, report = build(file)
    assert torch.equal(model.itm_head.weight, torch.stack([frozen[0], frozen[1] + 1]))
    assert "row 1 of itm_head.weight is the fine-tuned irtr_head.weight" in report.remarks
    del file.state["itm_head.fc.weight"], file.state["itm_head.fc.bias"]
    assert torch.equal(build(file)[0].itm_head.weight[1], frozen[1] + 1)


def test_a_head_that_was_not_pretrained_is_drawn_anew() -> None:
    file = released("pretraining", mim_weight=0.0)
    state = {name: value for name, value in file.state.items() if not name.startswith("mim_head.")}
    model, report = build(Released(state, file.settings))
    assert model.config.mim_weight == 0 and model.config.mlm_weight == 1
    assert report.remarks[-1] == "mim_head is not in the file and has weight 0 in loss_names: it is drawn anew"
    file.settings["config"]["loss_names"]["mim"] = 1
    with pytest.raises(CheckpointError, match=r"mim_head\.mask_token is missing"):
        build(Released(state, file.settings))


def test_another_position_table_of_the_pixel_decoder() -> None:
    file = released("pretraining")
    file.state["mim_head.decoder_pos_embed"] += 0.1
    with pytest.raises(CheckpointError, match="is not the sine-cosine table"):
        build(file)


@pytest.fixture
def checkpoint(tmp_path):
    content = released_by_others(tiny_of(TASKS["question_answering"], id2label=LABELS))
    content["hyper_parameters"] |= HEADS
    return save(tmp_path, content)


def test_a_folder_with_tokenizer_and_answers(checkpoint, tmp_path) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("yes\nno\nleft\n")
    report = convert(checkpoint, tmp_path / "out", tokenizer=word_tokenizer(tmp_path / "words", 128), answers=answers)
    assert report.remarks == []
    config = M3AEConfig.from_pretrained(tmp_path / "out")
    assert (
        config.id2label == LABELS and config.label2id == {"yes": 0, "no": 1, "left": 2} and config.mask_token_id == 127
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.crop_size == {"height": 32, "width": 32}
    assert processor.tokenizer.model_max_length == 64
    assert "a head chooses one of 3 answers" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_written_over(checkpoint, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine holds README\.md already: choose a new or an empty folder"):
        convert(checkpoint, tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]
    convert(checkpoint, tmp_path / "out")
    before = checkpoint.read_bytes()
    with pytest.raises(FileExistsError, match="exists already: choose another name"):
        release(tmp_path / "out", checkpoint)
    assert checkpoint.read_bytes() == before


def test_what_is_not_in_the_file_is_said(checkpoint, tmp_path) -> None:
    printed = str(convert(checkpoint, tmp_path / "out"))
    for part in (
        "M3AEForQuestionAnswering",
        "6 of CLIP's text tower",
        "2 of states of metrics",
        "names of answers",
        "no tokenizer",
    ):
        assert part in printed
    assert (
        not (tmp_path / "out" / "tokenizer.json").exists() and (tmp_path / "out" / "preprocessor_config.json").exists()
    )


def test_the_two_files_of_roberta_are_a_tokenizer(tmp_path) -> None:
    words = ["<s>", "<pad>", "</s>", "<unk>", "i", "s", "is", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni s\n")
    path = save(tmp_path, released_by_others(tiny_of(TASKS["retrieval"], text_config={"vocab_size": 8})))
    (tmp_path / "config.json").write_text(json.dumps(HEADS))
    (tmp_path / "words").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).rename(tmp_path / "words" / name)
    convert(path, tmp_path / "out", tokenizer=str(tmp_path / "words"))
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer("is").input_ids == [0, 6, 2]


def test_another_vocabulary(checkpoint, tmp_path) -> None:
    with pytest.raises(ValueError, match="another vocabulary than the checkpoint: words 90, expected 128"):
        convert(checkpoint, tmp_path / "out", tokenizer=word_tokenizer(tmp_path / "small", 90))
    moved = word_tokenizer(tmp_path / "moved", 128, pad_token="<s>", bos_token="<pad>")
    with pytest.raises(ValueError, match="padding 0, expected 1; beginning 1, expected 0"):
        convert(checkpoint, tmp_path / "out", tokenizer=moved)
    with pytest.raises(ValueError, match="No tokenizer in"):
        convert(checkpoint, tmp_path / "out", tokenizer=str(tmp_path / "nothing"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [["yes", "no"], {"answers": ["yes", "no"], "counts": {"yes": 3}}, {"no": 1, "yes": 0}, {"1": "no", "0": "yes"}],
)
def test_answer_lists(tmp_path, content: object) -> None:
    (tmp_path / "answers.json").write_text(json.dumps(content))
    assert read_answers(tmp_path / "answers.json") == ["yes", "no"]
    (tmp_path / "answers.txt").write_text("\ufeffyes\n\nno\n")
    assert read_answers(tmp_path / "answers.txt") == ["yes", "", "no"], "an answer of SLAKE is empty"


def test_wrong_answer_lists(checkpoint, tmp_path) -> None:
    path = tmp_path / "answers.txt"
    with pytest.raises(ValueError, match="is missing"):
        read_answers(path)
    path.write_text("yes\nyes\n")
    with pytest.raises(ValueError, match="lists 2 names, 1 of them different"):
        read_answers(path)
    for content in ("[" * 100_000, "{"):
        (tmp_path / "answers.json").write_text(content)
        with pytest.raises(ValueError, match=r"answers\.json is not valid JSON"):
            read_answers(tmp_path / "answers.json")
    path.write_text("yes\nno\n")
    with pytest.raises(ValueError, match="The list names 2 answers and the checkpoint's head has 3"):
        convert(checkpoint, tmp_path / "out", answers=path)
    with pytest.raises(ValueError, match="A model for retrieval has no answers"):
        build(released("retrieval"), answers=["yes"])


def test_a_prepared_list_of_answers_has_to_be_the_published_one(checkpoint, tmp_path) -> None:
    path = tmp_path / "answers.json"
    content = {"answers_from": "all", "answers": list(LABELS.values())}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"most frequent first.* prepare the folder again with --answers-from all"):
        convert(checkpoint, tmp_path / "out", answers=path)
    path.write_text(json.dumps(content | {"order": "published"}))
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json holds a list, expected an object"):
        convert(checkpoint, tmp_path / "out", answers=path)
    (tmp_path / "manifest.json").write_text(json.dumps({"source": "slake"}))
    settings = torch.load(checkpoint, weights_only=True)
    for name in ("", "vqa_slack", "something_else"):
        settings["hyper_parameters"]["config"]["datasets"] = [name]
        convert(save(tmp_path, settings), tmp_path / f"out{name}", answers=path)
        assert M3AEConfig.from_pretrained(tmp_path / f"out{name}").id2label == LABELS
    settings["hyper_parameters"]["config"]["datasets"] = ["vqa_vqa_rad"]
    with pytest.raises(ValueError, match="lists the answers of slake; the checkpoint was trained on vqa_rad"):
        convert(save(tmp_path, settings), tmp_path / "refused", answers=path)
    assert not (tmp_path / "refused").exists()


def test_a_checkpoint_that_names_its_answers_takes_no_others() -> None:
    content = released_content(tiny_of(TASKS["question_answering"], id2label=LABELS))
    file = Released(content["state_dict"], content["hyper_parameters"])
    assert build(file, answers=["yes", "no", "left"])[0].config.id2label == LABELS
    with pytest.raises(ValueError, match="calls output 1 'no' and the list 'left'"):
        build(file, answers=["yes", "left", "no"])


def test_only_saved_models_with_a_released_counterpart_go_back(tmp_path) -> None:
    with pytest.raises(ValueError, match="No saved M3AE model"):
        release(tmp_path, tmp_path / "m3ae.ckpt")
    tiny_of(TASKS["pretraining"]).m3ae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a M3AEModel; the released format has only M3AEForPreTraining"):
        release(tmp_path, tmp_path / "m3ae.ckpt")


def test_departures_from_the_published_code_are_said(tmp_path) -> None:
    tiny_of(TASKS["retrieval"], image_config={"hidden_act": "gelu"}).save_pretrained(tmp_path)
    remarks = release(tmp_path, tmp_path / "m3ae.ckpt").remarks
    assert any("image_config.hidden_act is gelu, the published code has quick_gelu" in remark for remark in remarks)
    assert read_released(tmp_path / "m3ae.ckpt").settings["m3ae"]["hidden_size"] == tiny_config().hidden_size
    assert released_content(tiny_of(TASKS["retrieval"]))["hyper_parameters"]["config"]["loss_names"]["irtr"] == 1
