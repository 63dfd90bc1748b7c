import math

import pytest
import torch
from torch.nn import functional as F

from m3ae import M3AEForClassification, M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.models.finetuned import answer_loss, class_loss, multi_label_loss
from tests.models.tiny import tiny_model, tiny_of, tiny_pairs

ANSWERS = dict(enumerate(["yes", "no", "left lung"]))


def test_answers_by_the_published_head() -> None:
    model = tiny_of(M3AEForQuestionAnswering, id2label=ANSWERS)
    labels = torch.tensor([0, 2, -100, 1])
    output = model(**tiny_pairs(), labels=labels)
    head = model.vqa_head
    pooled = model.m3ae(**tiny_pairs()).pooler_output
    hidden = torch.nn.functional.gelu(head.norm(head.dense(pooled)))
    torch.testing.assert_close(output.logits, head.output(hidden), atol=1e-4, rtol=1e-4)
    assert output.logits.shape == (4, 3) and list(output.losses) == ["vqa"] and output.loss == output.losses["vqa"]
    output.loss.backward()
    assert model.m3ae.image_encoder.vit.cls_token.grad.any() and head.dense.weight.grad.any()
    assert model(**tiny_pairs()).loss is None


def test_answers_are_told_apart_more_finely_than_bfloat16_does() -> None:
    model = tiny_of(M3AEForQuestionAnswering, id2label=ANSWERS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**tiny_pairs()).logits
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16()).any()


def test_answers_that_exclude_each_other() -> None:
    model = tiny_of(M3AEForQuestionAnswering, id2label=ANSWERS, problem_type="single_label_classification")
    labels = torch.tensor([0, 2, -100, 1])
    output = model(**tiny_pairs(), labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    torch.testing.assert_close(model.probabilities(output.logits).sum(-1), torch.ones(4))
    published = tiny_of(M3AEForQuestionAnswering, id2label=ANSWERS)
    assert torch.equal(published.probabilities(output.logits), output.logits.sigmoid())


@pytest.mark.parametrize("absent", ["image", "text"])
def test_a_missing_modality_is_the_same_for_all_samples_or_one(absent: str) -> None:
    model = tiny_of(M3AEForQuestionAnswering, id2label=ANSWERS)
    pairs = tiny_pairs()
    marked = model(**pairs, **{f"{absent}_present": torch.tensor([False, True, True, True])}).logits
    names = ["pixel_values"] if absent == "text" else ["input_ids", "attention_mask"]
    alone = model(**{name: pairs[name] for name in names}).logits
    torch.testing.assert_close(marked[:1], alone[:1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(marked[1:], model(**pairs).logits[1:])


def test_nothing_given() -> None:
    with pytest.raises(ValueError, match="pixel_values, input_ids, or both; got neither"):
        tiny_of(M3AEForQuestionAnswering)()


def test_starts_from_a_pretrained_model_with_an_answer_list(tmp_path) -> None:
    pretrained = tiny_model()
    pretrained.save_pretrained(tmp_path / "pretrained")
    model, info = M3AEForQuestionAnswering.from_pretrained(
        tmp_path / "pretrained", id2label=ANSWERS, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"vqa_head"} and not info["unexpected_keys"]
    assert torch.equal(model.m3ae.modality_types.weight, pretrained.m3ae.modality_types.weight)
    assert model.vqa_head.output.out_features == 3 and model.parameter_group("vqa_head.dense.weight") == "heads"
    model.save_pretrained(tmp_path / "tuned")
    assert M3AEForQuestionAnswering.from_pretrained(tmp_path / "tuned").config.id2label == ANSWERS
    assert M3AEForPreTraining.from_pretrained(tmp_path / "tuned").config.id2label == ANSWERS


CLASSES = dict(enumerate(["normal", "opacity", "fracture"]))


def test_one_class_a_sample() -> None:
    model = tiny_of(M3AEForClassification, id2label=CLASSES, class_weights=[1.0, 2.0, 5.0])
    labels = torch.tensor([0, 2, -100, 1])
    output = model(**tiny_pairs(), labels=labels)
    assert output.logits.shape == (4, 3) and list(output.losses) == ["cls"]
    expected = class_loss(output.logits, labels, torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(output.loss, expected)
    assert model(**tiny_pairs()).loss is None


def test_any_number_of_labels() -> None:
    model = tiny_of(M3AEForClassification, id2label=CLASSES, problem_type="multi_label_classification")
    labels = torch.tensor([[0, 1, 1], [-100, -100, 0], [1, 0, 0], [0, 0, 0]])
    output = model(**tiny_pairs(), labels=labels)
    torch.testing.assert_close(output.loss, multi_label_loss(output.logits, labels))


def test_text_alone_and_image_alone() -> None:
    model = tiny_of(M3AEForClassification, id2label=CLASSES)
    pairs = tiny_pairs()
    image, text = model(pairs["pixel_values"]).logits, model(None, pairs["input_ids"], pairs["attention_mask"]).logits
    assert image.shape == text.shape == (4, 3) and not torch.allclose(image, text)


def test_a_saved_model_keeps_classes_and_problem(tmp_path) -> None:
    options = {"problem_type": "multi_label_classification", "class_weights": [1.0, 2.0, 5.0]}
    tiny_of(M3AEForClassification, id2label=CLASSES, **options).save_pretrained(tmp_path)
    config = M3AEForClassification.from_pretrained(tmp_path).config
    assert config.id2label == CLASSES and {name: getattr(config, name) for name in options} == options


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="class_weights needs one number for each of the 3 classes"):
        tiny_of(M3AEForClassification, id2label=CLASSES, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="no regression; set problem_type"):
        tiny_of(M3AEForClassification, problem_type="regression")


def test_answer_loss_is_the_mean_times_the_number_of_answers() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[0, 1, 0, 0.3, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0.6]])
    published = F.binary_cross_entropy_with_logits(logits, scores) * 5
    torch.testing.assert_close(answer_loss(logits, scores), published)


def test_the_loss_of_answers_that_exclude_each_other() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    loss = answer_loss(logits, torch.tensor([1, -100, 4]), exclusive=True)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1, -100, 4])))
    two_right = torch.tensor([[0.0, 1, 0, 1, 0]])
    expected = -logits[:1].log_softmax(-1)[0, [1, 3]].mean()
    torch.testing.assert_close(answer_loss(logits[:1], two_right, exclusive=True), expected)


def test_answer_loss_leaves_out_questions_without_an_answer_in_the_list() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(torch.tensor([1, 4]), 5)
    loss = answer_loss(logits, torch.tensor([1, -100, 4]))
    torch.testing.assert_close(loss, answer_loss(logits[[0, 2]], one_hot))
    assert answer_loss(logits, torch.full((3,), -100)) == 0


def test_class_loss_is_the_weighted_cross_entropy_of_the_known() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, -100, 2, 2]), torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(class_loss(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(class_loss(logits, labels, weights), F.cross_entropy(logits, labels, weights))
    assert class_loss(logits, torch.full((4,), -100), weights) == 0


def test_multi_label_loss_ignores_unknown_entries() -> None:
    logits = torch.tensor([[0.0, 3.0], [-1.0, 2.0]])
    labels = torch.tensor([[1, -100], [0, 1]])
    log = [math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(-2))]
    assert multi_label_loss(logits, labels).item() == pytest.approx(sum(log) / 3)
    weighted = multi_label_loss(logits, labels, torch.tensor([1.0, 4.0]))
    assert weighted.item() == pytest.approx((log[0] + log[1] + 4 * log[2]) / 3)
    assert multi_label_loss(logits, torch.full((2, 2), -100)) == 0
