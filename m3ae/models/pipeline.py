"""Question answering as a pipeline: `pipeline("m3ae-question-answering", "folder-or-hub-name")`."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoModelForVisualQuestionAnswering, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.generic import ModelOutput

TASK = "m3ae-question-answering"


class QuestionAnsweringPipeline(Pipeline):
    """Answers questions about images from the model's answer list.

    `answer({"image": image, "question": "Is there an effusion?"})` gives a list of `{"answer": str, "score": float}`,
    best first, the score being the answer's probability; a list of questions gives a list of such lists. Images are
    whatever the processor takes: those of Pillow, arrays, files (DICOM, too) or addresses.

    Args of a call:
        top_k: Number of answers; 5 if not given.
        batch_size: Questions answered at a time.
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
        return {name: encoded[name] for name in ("pixel_values", "input_ids", "attention_mask")}

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
