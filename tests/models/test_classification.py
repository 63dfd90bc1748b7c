import pytest
import torch

from m3ae import M3AEForClassification
from m3ae.models import losses
from tests.models.tiny import tiny_of, tiny_pairs

CLASSES = dict(enumerate(["normal", "opacity", "fracture"]))


def test_one_class_a_sample() -> None:
    model = tiny_of(M3AEForClassification, id2label=CLASSES, class_weights=[1.0, 2.0, 5.0])
    labels = torch.tensor([0, 2, -100, 1])
    output = model(**tiny_pairs(), labels=labels)
    assert output.logits.shape == (4, 3) and list(output.losses) == ["cls"]
    expected = losses.class_loss(output.logits, labels, torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(output.loss, expected)
    assert model(**tiny_pairs()).loss is None


def test_any_number_of_labels() -> None:
    model = tiny_of(M3AEForClassification, id2label=CLASSES, problem_type="multi_label_classification")
    labels = torch.tensor([[0, 1, 1], [-100, -100, 0], [1, 0, 0], [0, 0, 0]])
    output = model(**tiny_pairs(), labels=labels)
    torch.testing.assert_close(output.loss, losses.multi_label_loss(output.logits, labels))


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
    with pytest.raises(ValueError, match="one weight for each of the 3 classes of id2label, got 2"):
        tiny_of(M3AEForClassification, id2label=CLASSES, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="no regression; set problem_type"):
        tiny_of(M3AEForClassification, problem_type="regression")
