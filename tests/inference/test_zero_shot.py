from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae import M3AEForImageTextRetrieval, M3AEForPreTraining, M3AEImageProcessor, M3AEProcessor
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference import ZeroShotClassifier, open_collection, open_index
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.tiny import tiny_of

CLASSES = {"nodule": ["nodule", "small round spot"], "device": ["pacemaker"], "none": ["The lungs are clear."]}
TEMPLATES = ["there is a {}", "{} on the left", "{}"]


@pytest.fixture(scope="module")
def processor() -> M3AEProcessor:
    texts = [*TEMPLATES, *(text for texts in CLASSES.values() for text in texts)]
    return M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer(texts, 300))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8)) for _ in range(5)]


def build(
    processor: M3AEProcessor, model_class: type[M3AEPreTrainedModel] = M3AEForPreTraining, **options: Any
) -> Any:
    return tiny_of(model_class, text_config={"vocab_size": len(processor.tokenizer)}, **options)


def text_vector(model: Any, processor: M3AEProcessor, text: str) -> torch.Tensor:
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    return model.itc_head.embed("text", model.m3ae.encode_text(ids))[0]


def matches(model: Any, processor: M3AEProcessor, images: list[Image.Image], text: str) -> torch.Tensor:
    """The matching score (B,) of each image with a text, each pair computed alone."""
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    pixels = [processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in images]
    text_stream = model.m3ae.encode_text(ids)
    return torch.cat([model.score(text_stream, model.m3ae.encode_image(one)) for one in pixels])


@torch.no_grad()
def test_a_class_is_the_mean_of_its_prompts(processor, images) -> None:
    model = build(processor, itc_weight=1.0)
    classifier = ZeroShotClassifier(model, processor, CLASSES, TEMPLATES[:2])
    assert classifier.prompts == {
        "nodule": (
            ["there is a nodule", "nodule on the left", "there is a small round spot", "small round spot on the left"],
            [],
        ),
        "device": (["there is a pacemaker", "pacemaker on the left"], []),
        "none": (["The lungs are clear."], []),
    }
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    image_vectors = model.itc_head.embed("image", model.m3ae.encode_image(pixels))
    columns = []
    for prompts, _ in classifier.prompts.values():
        mean = torch.stack([text_vector(model, processor, prompt) for prompt in prompts]).mean(0)
        columns.append(image_vectors @ mean / mean.norm())
    expected = model.itc_head.log_scale.exp() * torch.stack(columns, dim=1)
    torch.testing.assert_close(classifier.scores(images), expected, rtol=1e-5, atol=1e-5)
    rows = [[*row.values()] for row in classifier.classify(images)]
    torch.testing.assert_close(torch.tensor(rows), expected.softmax(1), rtol=1e-5, atol=1e-5)


def test_order_changes_nothing(processor, images) -> None:
    model = build(processor, itc_weight=1.0)
    scores = ZeroShotClassifier(model, processor, CLASSES, TEMPLATES).scores(images)
    turned = {name: texts[::-1] for name, texts in [*CLASSES.items()][::-1]}
    others = ZeroShotClassifier(model, processor, turned, TEMPLATES[::-1]).scores(images[::-1])
    torch.testing.assert_close(others.flip(0, 1), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"itc_weight": 1.0}, {}], ids=["contrast", "matching"])
def test_one_template_scores_as_search_does(processor, images, tmp_path: Path, capsys, options) -> None:
    model = build(processor, **options)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    scores = ZeroShotClassifier(model, processor, ["nodule", "pacemaker"], ["there is a {}"]).scores(images)
    index = open_index(model, processor, open_collection(tmp_path), tmp_path / "index")
    hits = index.find("there is a pacemaker", k=5, rerank=0)
    scale = model.itc_head.log_scale.exp().item() if options else 1.0
    by_name = {hit.image: scale * hit.score for hit in hits}
    found = torch.tensor([by_name[f"{number}.png"] for number in range(5)])
    torch.testing.assert_close(scores[:, 1], found, rtol=2e-3, atol=2e-3)  # the index of matching has half precision


@pytest.mark.parametrize("model_class", [M3AEForPreTraining, M3AEForImageTextRetrieval])
@torch.no_grad()
def test_the_matching_head_orders_the_best_classes(processor, images, model_class) -> None:
    model = build(processor, model_class, itc_weight=1.0)
    first = ZeroShotClassifier(model, processor, CLASSES, TEMPLATES).scores(images)
    classifier = ZeroShotClassifier(model, processor, CLASSES, TEMPLATES, rerank=3)
    prompts = [positive for positive, _ in classifier.prompts.values()]
    expected = torch.stack(
        [torch.stack([matches(model, processor, images, text) for text in group]).mean(0) for group in prompts], dim=1
    )
    torch.testing.assert_close(classifier.scores(images), expected, rtol=1e-5, atol=1e-5)
    two = ZeroShotClassifier(model, processor, CLASSES, TEMPLATES, rerank=2).scores(images)
    worst = first.argmin(1, keepdim=True)
    torch.testing.assert_close(two, expected.scatter(1, worst, -torch.inf), rtol=1e-5, atol=1e-5)
    alone = build(processor, model_class)  # without contrast everything is matched
    everything = ZeroShotClassifier(alone, processor, CLASSES, TEMPLATES).scores(images)
    assert torch.equal(everything, ZeroShotClassifier(alone, processor, CLASSES, TEMPLATES, rerank=3).scores(images))


@pytest.mark.parametrize("rerank", [0, 2])
def test_a_label_is_positive_minus_negative(processor, images, rerank: int) -> None:
    model = build(processor, itc_weight=1.0)
    classes = {"nodule": ["nodule"], "none": ["The lungs are clear."]}
    classifier = ZeroShotClassifier(model, processor, classes, ["{}"], ["no {}", "normal"], rerank)
    assert classifier.multi_label and classifier.prompts == {
        "nodule": (["nodule"], ["no nodule", "normal"]),
        "none": (["The lungs are clear."], ["no none", "normal"]),
    }
    positive = ZeroShotClassifier(model, processor, ["nodule", "spot"], ["{}"], rerank=rerank).scores(images)
    negative = {"nodule": ["no nodule", "normal"], "spot": ["no spot"]}
    without = ZeroShotClassifier(model, processor, negative, ["{}"], rerank=rerank).scores(images)
    scores = classifier.scores(images)
    torch.testing.assert_close(scores[:, 0], positive[:, 0] - without[:, 0], rtol=1e-5, atol=1e-5)
    rows = [[*row.values()] for row in classifier.classify(images)]
    torch.testing.assert_close(torch.tensor(rows), scores.sigmoid())


def test_images_may_be_files_also_of_dicom(processor, images, tmp_path: Path) -> None:
    file = pytest.importorskip("pydicom.data").get_testdata_file("CT_small.dcm", download=False)
    images[0].save(tmp_path / "a.png")
    classifier = ZeroShotClassifier(build(processor, itc_weight=1.0), processor, ["nodule", "spot"])
    from_files = classifier.classify([tmp_path / "a.png", file])
    assert from_files[0] == pytest.approx(classifier.classify(images[:1])[0], abs=1e-5) and len(from_files) == 2
    assert classifier.classify([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["nodule"]}, "got 1 classes, expected at least 2"),
        ({"classes": ["nodule", "nodule"]}, "expected another name and other prompts for each"),
        ({"classes": {"a": ["spot"], "b": ["spot"]}}, "expected another name and other prompts for each"),
        ({"classes": {"a": ["spot"], "b": []}}, "class 'b' has no prompt"),
        ({"classes": {"a": ["spot"], "b": " "}}, "class 'b': got one text"),
        ({"classes": {"a": ["spot"], "b": [" "]}}, "class 'b' has no prompt, or an empty one"),
        ({"templates": ["a nodule"]}, r"template 'a nodule' has no \{\} for the class"),
        ({"templates": "{}"}, "got one text for its prompts or the templates"),
        ({"rerank": -1}, "rerank: got -1, expected at least 0"),
        ({"negative_templates": ["no {}"], "rerank": 1}, "rerank: got 1, expected 0 or all 2"),
    ],
)
def test_what_cannot_be_asked(processor, arguments: dict[str, Any], message: str) -> None:
    model = build(processor, itc_weight=1.0)
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(model, processor, **{"classes": ["nodule", "spot"]} | arguments)


def test_what_the_model_was_not_trained_for(processor) -> None:
    with pytest.raises(ValueError, match="neither a matching nor a contrastive head"):
        ZeroShotClassifier(build(processor, itm_weight=0.0), processor, ["nodule", "spot"])
    with pytest.raises(ValueError, match=r"rerank: got 2, .* 0 without a trained matching head"):
        ZeroShotClassifier(build(processor, itm_weight=0.0, itc_weight=1.0), processor, ["nodule", "spot"], rerank=2)
