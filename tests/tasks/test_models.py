from pathlib import Path
from typing import Any

import pytest
import torch

from m3ae import (
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEImageProcessor,
    M3AEProcessor,
)
from m3ae.inference import load_model
from m3ae.tasks.models import has_labels, label_names, open_model, saved_config
from m3ae.training.config import RunConfig
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning

ANSWERS = {"id2label": {0: "yes", 1: "no", 2: "left"}}


def run(tmp_path: Path, path: str | None, **sections: Any) -> RunConfig:
    sections["model"] = {"path": path} | sections.get("model", {})
    return tiny_finetuning("question_answering", tmp_path, tmp_path / "run", **sections)


def answerer(config: RunConfig, *, new_head: bool = False, **options: Any) -> M3AEForQuestionAnswering:
    model, _ = open_model(config, M3AEForQuestionAnswering, lambda: ["some text"], options, new_head=new_head)
    return model


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    return save_model(tmp_path / "pretrained", M3AEForPreTraining)


@pytest.fixture
def finetuned(tmp_path: Path) -> str:
    return save_model(tmp_path / "finetuned", M3AEForQuestionAnswering, id2label={0: "yes", 1: "no"})


def test_a_new_head_stands_on_the_trunk_of_a_saved_model(tmp_path: Path, pretrained: str) -> None:
    config = run(tmp_path, pretrained)
    model = answerer(config, new_head=True, **ANSWERS)
    assert equal(model.m3ae, M3AEForPreTraining.from_pretrained(pretrained).m3ae)
    assert model.vqa_head.output.out_features == 3 and label_names(model.config) == ["yes", "no", "left"]
    assert equal(model, answerer(config, new_head=True, **ANSWERS)), "the seed decides the head"
    other = answerer(run(tmp_path, pretrained, training={"seed": 1}), new_head=True, **ANSWERS)
    assert equal(model.m3ae, other.m3ae) and not equal(model.vqa_head, other.vqa_head)


def test_from_scratch_keeps_nothing_but_sizes_and_vocabulary(tmp_path: Path, pretrained: str) -> None:
    model = answerer(run(tmp_path, pretrained, model={"from_scratch": True}), new_head=True, **ANSWERS)
    assert not torch.equal(
        model.m3ae.projections["text"].weight,
        M3AEForPreTraining.from_pretrained(pretrained).m3ae.projections["text"].weight,
    )
    assert model.config.text_config.vocab_size == saved_config(pretrained).text_config.vocab_size


def test_a_head_is_kept_unless_a_new_one_is_asked_for(tmp_path: Path, finetuned: str) -> None:
    kept = answerer(run(tmp_path, finetuned))
    assert equal(kept, M3AEForQuestionAnswering.from_pretrained(finetuned))
    new = answerer(run(tmp_path, finetuned), new_head=True, id2label={0: "left", 1: "right"})
    assert equal(kept.m3ae, new.m3ae) and not equal(kept.vqa_head, new.vqa_head)
    assert label_names(new.config) == ["left", "right"]


def test_a_head_has_labels_only_in_their_order_and_for_its_task(finetuned: str, pretrained: str) -> None:
    assert has_labels(finetuned, M3AEForQuestionAnswering, ["yes", "no"])
    assert not has_labels(finetuned, M3AEForQuestionAnswering, ["no", "yes"])
    assert not has_labels(finetuned, M3AEForPreTraining, ["yes", "no"])
    assert not has_labels(None, M3AEForQuestionAnswering, ["yes", "no"])


def test_a_checkpoint_without_the_head_is_explained(tmp_path: Path, pretrained: str, finetuned: str) -> None:
    with pytest.raises(ValueError, match="is M3AEForPreTraining and has no vqa_head, which M3AEForQuestionAnswering"):
        answerer(run(tmp_path, pretrained))
    with pytest.raises(ValueError, match="is M3AEForQuestionAnswering and has no itm_head"):
        open_model(run(tmp_path, finetuned), M3AEForImageTextRetrieval, lambda: [])


def test_contrast_may_go_on_with_another_loss(tmp_path: Path) -> None:
    path = str(save_model(tmp_path / "contrastive", M3AEForPreTraining, itc_weight=1.0))
    changed = run(tmp_path, path, model={"overrides": {"itc_loss": "sigmoid"}})
    model, _ = open_model(changed, M3AEForPreTraining, lambda: [], new_head=False)
    assert (model.itc_head.bias.item(), model.itc_head.log_scale.exp().item()) == (-10, pytest.approx(1 / 0.07))


def test_a_head_of_another_size_than_its_labels_is_explained(tmp_path: Path, finetuned: str) -> None:
    with pytest.raises(ValueError, match="the head has not one row for each of its labels"):
        answerer(run(tmp_path, finetuned), **ANSWERS)


@pytest.mark.parametrize("saved", [True, False])
def test_another_image_size_interpolates_the_positions(tmp_path: Path, pretrained: str, saved: bool) -> None:
    config = run(tmp_path, pretrained if saved else None, finetuning={"image_size": 48})
    model, processor = open_model(config, M3AEForQuestionAnswering, lambda: ["a text"], ANSWERS, new_head=True)
    assert model.config.image_config.image_size == processor.image_processor.crop_size["height"] == 48
    assert model(pixel_values=torch.zeros(1, 3, 48, 48)).logits.shape == (1, 3)


@pytest.mark.parametrize("options", [{"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"do_normalize": False}])
def test_a_processor_that_contradicts_the_model_is_refused(
    tmp_path: Path, finetuned: str, options: dict[str, Any]
) -> None:
    processor = M3AEProcessor.from_pretrained(finetuned)
    processor.image_processor = M3AEImageProcessor.for_size(32, **options)
    processor.save_pretrained(finetuned)
    with pytest.raises(ValueError, match=r"the processor normalises images by mean .* image_config of the model says"):
        answerer(run(tmp_path, finetuned))
    with pytest.raises(ValueError, match=r"the processor normalises images by mean .* image_config of the model says"):
        load_model(finetuned, [M3AEForQuestionAnswering])


@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_images_of_a_saved_model_may_be_made_square_otherwise(tmp_path: Path, finetuned: str, mode: str) -> None:
    overrides = {"image_config": {"resize": mode}}
    config = run(tmp_path, finetuned, model={"overrides": overrides})
    model, processor = open_model(config, M3AEForQuestionAnswering, lambda: ["a text"])
    assert model.config.image_config.resize == processor.image_processor.resize_mode == mode
    assert equal(model, M3AEForQuestionAnswering.from_pretrained(finetuned))
    model.save_pretrained(finetuned)  # beside a processor that crops
    for read in (lambda: answerer(run(tmp_path, finetuned)), lambda: load_model(finetuned, [type(model)])):
        with pytest.raises(ValueError, match=f"resize 'crop', but image_config of the model says '{mode}'"):
            read()
    new = run(tmp_path, None, tokenizer={"vocab_size": 265}, model={"overrides": overrides})
    assert open_model(new, M3AEForQuestionAnswering, lambda: ["a"], ANSWERS)[1].image_processor.resize_mode == mode


def test_a_new_model_reads_the_words_of_the_texts(tmp_path: Path) -> None:
    config = run(tmp_path, None, tokenizer={"vocab_size": 265})
    model, processor = open_model(config, M3AEForQuestionAnswering, lambda: ["nodule nodule"], ANSWERS)
    assert model.config.text_config.vocab_size == len(processor.tokenizer) == 265
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id


def test_what_is_no_model_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.path: no saved M3AE model in 'nowhere': there is no such folder"):
        answerer(run(tmp_path, "nowhere"))
