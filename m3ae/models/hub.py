"""What the hub knows of a model: its card (README.md), and question answering as a pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import AutoModelForVisualQuestionAnswering, Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.generic import ModelOutput

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {pipeline}
tags: [m3ae, medical, multimodal, masked-autoencoder]
---

# {title}

A masked multimodal autoencoder (M3AE) of {parameters:.1f} M parameters: {architecture}.
{training}

```python
{usage}
```

## Data

{data}

## Metrics

{metrics}

Not a medical device: not for diagnosis or treatment.
"""

_LOAD = """\
import m3ae  # registers the model; must come before AutoModel
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{location}")
model = AutoModel.from_pretrained("{location}")
inputs = processor(images=image, text="Clear lungs.", return_tensors="pt")  # either may be left out
features = model(**inputs)"""

_ANSWER = """\
import m3ae  # registers the model and the pipeline
from transformers import pipeline

answer = pipeline("m3ae-question-answering", "{location}")
answer({{"image": image, "question": "Is there an effusion?"}})  # [{{"answer": …, "score": …}}, …]"""

_CLASSIFY = """\
from m3ae import M3AEForClassification, M3AEProcessor

processor = M3AEProcessor.from_pretrained("{location}")
model = M3AEForClassification.from_pretrained("{location}")
inputs = processor(images=image, text="Clear lungs.", return_tensors="pt")  # either may be left out
logits = model(**inputs).logits
print(model.config.id2label[logits[0].argmax().item()])"""

_REPORT = """\
from m3ae import M3AEForReportGeneration, M3AEProcessor
from m3ae.inference import write_reports

processor = M3AEProcessor.from_pretrained("{location}")
model = M3AEForReportGeneration.from_pretrained("{location}").eval()
reports = write_reports(model, processor, [image], num_beams=4)"""

_SCORE = """\
from m3ae import M3AEForImageTextRetrieval, M3AEProcessor

processor = M3AEProcessor.from_pretrained("{location}")
model = M3AEForImageTextRetrieval.from_pretrained("{location}")
inputs = processor(images=image, text="Clear lungs.", return_tensors="pt")
text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])  # once for each text
score = model.score(text, model.encode_image(inputs["pixel_values"]{pixel_mask}))"""

_GENERATE = """\
from m3ae import M3AEForGeneration

model = M3AEForGeneration.from_pretrained("{location}").eval()
observed = {{name: {{"pixel_values": images}}}}  # of any modalities, with values in [0, 1]
generated = model.generate_modalities(observed, num_samples=4)
joint = model.sample_prior(8)  # name of each modality → 8 samples; a conditional VAE has no prior"""

_TRUNK = """\
a ViT over {image_size} px images in
patches of {patch_size} px and a text encoder ({text_type}), fused by {layers} co-attention layers; {head}"""

_LATENT = """\
experts of the
modalities {modalities}, joined to a {kind} posterior over {size} latent dimensions"""

# Class → tag of the hub, what the heads do, how to use it.
_CLASSES = {
    "M3AEModel": ("feature-extraction", "without heads", _LOAD),
    "M3AEForPreTraining": (
        "feature-extraction",
        "pre-trained by masked-image modelling, masked-language modelling and image-text matching",
        _LOAD,
    ),
    "M3AEForQuestionAnswering": ("visual-question-answering", "a head chooses one of {labels} answers", _ANSWER),
    "M3AEForClassification": ("image-classification", "a head scores {labels} classes", _CLASSIFY),
    "M3AEForGeneration": ("any-to-any", "", _GENERATE),
    "M3AEForReportGeneration": (
        "image-to-text",
        "an autoregressive decoder of {report_layers} layers writes reports",
        _REPORT,
    ),
    "M3AEForImageTextRetrieval": ("feature-extraction", "a head scores how well an image and a text match", _SCORE),
}


def model_card(
    model: PreTrainedModel,
    location: str,
    title: str | None = None,
    training: str = "",
    data: str = "Not recorded. The licence of the training data applies to what is derived from it.",
    metrics: str = "Not measured yet.",
) -> str:
    """Write the card of a model.

    Args:
        model: Any model of this package.
        location: The folder or hub name that users load it from.
        title: Heading; made from `location` if None.
        training: How it was trained, in sentences.
        data: What it was trained on, under which licences.
        metrics: A Markdown table, or sentences.
    """
    config = model.config
    pipeline, head, usage = _CLASSES[type(model).__name__]
    mask = ', pixel_mask=inputs["pixel_mask"]' if config.image_config.resize == "pad" else ""
    if type(model).__name__ == "M3AEForPreTraining" and config.itc_weight:
        head += ", with image-text contrast"
    return _TEMPLATE.format(
        pipeline=pipeline,
        title=title or f"M3AE, {location}",
        parameters=model.num_parameters() / 1e6,
        architecture=_architecture(model, head),
        training=training,
        usage=usage.format(location=location, pixel_mask=mask),
        data=data,
        metrics=metrics,
    )


def _architecture(model: PreTrainedModel, head: str) -> str:
    config = model.config
    if type(model).__name__ == "M3AEForGeneration":
        latent = config.latent
        return _LATENT.format(modalities=", ".join(latent.modalities), kind=latent.kind, size=latent.size)
    return _TRUNK.format(
        image_size=config.image_config.image_size,
        patch_size=config.image_config.patch_size,
        text_type=config.text_config.model_type,
        layers=config.num_hidden_layers,
        head=head.format(labels=config.num_labels, report_layers=config.report_num_hidden_layers),
    )


def publish_card(
    model: PreTrainedModel, repo_id: str, token: str | bool | None = None, private: bool | None = None
) -> None:
    """Upload a model's card into its repository of the hub, unless the repository has one.

    Args:
        model: The model; the card is that of the folder which the model was loaded from, if the model is still of that
            class, or else a generated one.
        repo_id: The repository, which is created if it does not exist.
        token: The token for `HfApi`.
        private: Whether a repository that is created is private.
    """
    api = HfApi(token=token)
    if api.file_exists(repo_id, "README.md"):
        return
    written = Path(model.name_or_path or "") / "README.md"
    is_its_own = bool(model.name_or_path) and model.config.architectures == [type(model).__name__]
    card = written.read_text("utf-8") if is_its_own and written.is_file() else model_card(model, repo_id)
    api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id)


TASK = "m3ae-question-answering"


class QuestionAnsweringPipeline(Pipeline):
    """Answers questions about images from the model's answer list.

    `answer({"image": image, "question": "Is there an effusion?"})` gives a list of `{"answer": str, "score": float}`,
    best first, the score being the answer's probability; a list of questions gives a list of such lists. Images are
    whatever the processor takes: those of Pillow, arrays, files (DICOM, too) or addresses.

    Args of a call:
        top_k: Number of answers; 5 by default.
        batch_size: Number of questions answered at a time.
    """

    _load_processor = True  # type: ignore[assignment]  # transformers' own pipelines override None so
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def save_pretrained(self, save_directory: str | os.PathLike[Any], **options: Any) -> None:
        """Save model and processor; the pipeline's code comes with this package."""
        assert self.processor is not None
        self.model.save_pretrained(save_directory, **options)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(
        self, top_k: int | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise ValueError(f"The pipeline has no option {', '.join(unknown)}; it has top_k and batch_size.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Turn {"image": …, "question": …} into what the model takes."""
        if not isinstance(input_, dict) or input_.keys() != {"image", "question"}:
            got = sorted(input_) if isinstance(input_, dict) else type(input_).__name__
            raise ValueError(f'The pipeline takes {{"image": …, "question": "…"}}, or a list of these; got {got}.')
        assert self.processor is not None
        encoded = self.processor(images=input_["image"], text=input_["question"], truncation=True, return_tensors="pt")
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
        return {name: encoded[name] for name in names if name in encoded}

    def _forward(self, input_tensors: dict[str, Any], **_: Any) -> ModelOutput:
        answered: ModelOutput = self.model(**input_tensors)
        return answered

    def postprocess(self, model_outputs: ModelOutput, **options: Any) -> list[dict[str, Any]]:
        """Return the most probable answers."""
        scores = self.model.probabilities(model_outputs["logits"].float())[0]  # type: ignore[operator]
        best = scores.topk(min(options.get("top_k", 5), len(scores)))
        answers: dict[int, str] = self.model.config.id2label  # type: ignore[assignment]  # keys are int once loaded
        return [
            {"answer": answers[index], "score": score}
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def register_pipeline() -> None:
    """Make the pipeline known to `transformers.pipeline`."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=QuestionAnsweringPipeline,
            pt_model=AutoModelForVisualQuestionAnswering,
            type="multimodal",
        )
