import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from m3ae import (
    M3AEConfig,
    M3AEForClassification,
    M3AEForGeneration,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForReportGeneration,
    M3AEModel,
)
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.tiny import tiny_of, tiny_pairs
from tests.models.tiny_latent import digits_batch, latent_model

LABELS = {"id2label": {0: "no", 1: "yes"}}
CLASSES = {
    M3AEModel: {},
    M3AEForPreTraining: {},
    M3AEForQuestionAnswering: LABELS,
    M3AEForClassification: LABELS,
    M3AEForImageTextRetrieval: {},
    M3AEForReportGeneration: {},
}
HUB = {"return_dict": True, "output_attentions": False, "output_hidden_states": False, "use_cache": False}


def with_inputs(model_class: type[M3AEPreTrainedModel]) -> tuple[M3AEPreTrainedModel, dict[str, Any]]:
    if model_class is M3AEForGeneration:
        return latent_model(), {"modalities": digits_batch()}
    return tiny_of(model_class, **CLASSES[model_class]), dict(tiny_pairs())


@pytest.mark.parametrize("model_class", [*CLASSES, M3AEForGeneration])
def test_an_unknown_argument_is_refused_with_the_nearest_one(model_class: type[M3AEPreTrainedModel]) -> None:
    model, inputs = with_inputs(model_class)
    for name, value in inputs.items():
        others = {key: other for key, other in inputs.items() if key != name}
        message = rf"{model_class.__name__}.forward has no argument '{name}s'. Did you mean {name}"
        with pytest.raises(TypeError, match=message):
            model(**others, **{f"{name}s": value})


@pytest.mark.parametrize("model_class", [*CLASSES, M3AEForGeneration])
def test_what_hugging_face_programs_pass_changes_nothing(model_class: type[M3AEPreTrainedModel]) -> None:
    model, inputs = with_inputs(model_class)
    torch.manual_seed(0)
    plain = model(**inputs)
    torch.manual_seed(0)
    more = model(**inputs, **HUB, num_items_in_batch=torch.tensor(4), inputs_embeds=None, position_ids=None)
    for name, value in plain.items():
        torch.testing.assert_close(more[name], value)
    # Trainer would divide the loss by its own number of items if `forward` took any keyword.
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_a_tensor_of_a_modality_is_not_misspelt() -> None:
    model, batch = latent_model(), digits_batch()
    for name, nearest in (("presnt", "present"), ("pixel_valuess", "pixel_values")):
        glyph = {**batch["glyph"], name: torch.ones(6)}
        with pytest.raises(ValueError, match=rf"'glyph' of kind image has no tensor '{name}'. Did you mean {nearest}"):
            model({**batch, "glyph": glyph})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_hidden_layer": 2},
            "text_config has no option 'num_hidden_layer'. Did you mean num_hi",
        ),
        (
            {"model_type": "bert", "hiden_size": 8},
            "text_config has no option 'hiden_size'. Did you mea",
        ),
    ],
)
def test_options_of_the_text_encoder_are_not_misspelt(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M3AEConfig(text_config=options)
    M3AEConfig(text_config={"model_type": "deberta-v2", "position_buckets": 8, "num_attention_heads": 6})  # undeclared
    renamed = M3AEConfig(text_config={"model_type": "distilbert", "hidden_size": 96, "num_attention_heads": 4})
    assert renamed.text_config.dim == 96
    renamed.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["text_config"] |= {"written_by": "another program"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert M3AEConfig.from_pretrained(tmp_path).text_config.dim == 96
