"""Predictions about any images: probabilities of classes, answers, reports, and scores of images with texts.

Shapes: B rows, U different studies, V views, A answers or classes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from m3ae.files import replacing
from m3ae.images.files import ImageFile, StoredImage, load_image
from m3ae.inference.inputs import BATCH_SIZE, check_picture, encode_pixels, encode_words, load_model, saved_class
from m3ae.inference.rows import Rejection, Row
from m3ae.inference.search import SEARCHING, has_matching_head
from m3ae.models.finetuned import M3AEForClassification, M3AEForQuestionAnswering
from m3ae.models.fusion import Stream
from m3ae.models.modeling import STREAMS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.models.reports import M3AEForReportGeneration
from m3ae.models.retrieval import M3AEForImageTextRetrieval

Loaded = tuple[M3AEPreTrainedModel, M3AEProcessor]
Prediction = dict[str, Any]
Streams = Mapping[str, Stream]


class Case(NamedTuple):
    """What a prediction is about.

    Attributes:
        facts: What the prediction repeats, such as the id.
        images: Images by view or column: files, bytes, pictures or arrays.
        text: The text or the question.
        error: The reason why nothing can be predicted.
    """

    facts: Prediction
    images: Mapping[str, Any]
    text: str | None = None
    error: str | None = None


def predict(
    model: str | Path | Loaded,
    images: Sequence[Any],
    texts: str | Sequence[str | None] | None = None,
    *,
    top_k: int = 5,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
) -> list[Prediction]:
    """Predict classes, answers, scores or reports of images with a fine-tuned model.

    Args:
        model: The folder of the model or of its run, a hub name, or a loaded model with its processor.
        images: Files, DICOM among them, bytes, pictures of Pillow, arrays or tensors, each a row; for a model of
            several views, a row may be a mapping from views to images. None is a row without image.
        texts: The text or the question of each row, or one for all.
        top_k: The number of answers of question answering, at most.
        batch_size: The number of rows at a time.
        device: The device of a model that is not loaded yet; by default a GPU if there is one.

    Returns:
        A mapping for each row. Classification has `prediction`, a class or a list of labels, and `probabilities`.
        Question answering has `prediction`, `probability` and the `answers`, the likeliest first. Retrieval has
        `score`, of the matching head, and `cosine`, of the contrastive head. Report generation has `report`. A row
        that cannot be predicted has `error`, the reason.

    Raises:
        TypeError: The model is neither a name nor a model with its processor.
        ValueError: There is no such model, it predicts none of these, or images and texts differ in number.
    """
    loaded = open_predictor(model, device) if isinstance(model, str | Path) else model
    if not (isinstance(loaded, tuple) and len(loaded) == 2 and isinstance(loaded[0], M3AEPreTrainedModel)):
        raise TypeError(
            f"model: got a {type(loaded).__name__}, expected a folder, a hub name, or a model with its processor"
        )
    each = [texts] * len(images) if texts is None or isinstance(texts, str) else [*texts]
    if len(each) != len(images):
        raise ValueError(f"expected a text for each image, or one for all, got {len(each)} for {len(images)} images")
    rows = [image if isinstance(image, Mapping) else {"image": image} for image in images]
    cases = [Case({}, row, text) for row, text in zip(rows, each, strict=True)]
    return [*predict_cases(*loaded, cases, top_k=top_k, batch_size=batch_size)]


def open_predictor(path: str | Path, device: str | None = None) -> Loaded:
    """Load a model that predicts, and its processor.

    Raises:
        ValueError: There is no such model, or it predicts neither classes, answers, reports nor scores.
    """
    if (name := saved_class(path)) not in (expected := [kind.__name__ for kind in PREDICTORS]):
        raise ValueError(
            f"the model in {path} is {name}, expected {', '.join(expected)}; m3ae generate generates the modalities "
            "of a latent model"
        )
    model, processor = load_model(path, tuple(PREDICTORS), device)
    if isinstance(model, SEARCHING) and not (has_matching_head(model) or model.itc_head):
        raise ValueError(
            f"the model in {path} was trained with neither a matching nor a contrastive head, and scores no texts; "
            "m3ae reconstruct shows what it fills in"
        )
    return model, processor


def read_cases(
    rows: Iterable[Row | Rejection], model: M3AEPreTrainedModel, texts: Sequence[str] = ()
) -> Iterator[Case]:
    """Yield what a model predicts about rows, see `m3ae.inference.rows`; each row with each of `texts`, if any."""
    asks = isinstance(model, M3AEForQuestionAnswering)
    for row in rows:
        if isinstance(row, Rejection):
            yield Case({"id": row.id}, {}, error=str(row))
            continue
        stored = row.question if asks else next(iter(row.texts), None)
        split = {} if row.split is None else {"split": row.split}
        for text in texts or (stored,):
            repeated = {"question" if asks else "text": text} if texts or asks or isinstance(model, SEARCHING) else {}
            yield Case({"id": row.id, **split, **repeated}, row.images, text)


@torch.inference_mode()
def predict_cases(
    model: M3AEPreTrainedModel,
    processor: M3AEProcessor,
    cases: Iterable[Case],
    *,
    top_k: int = 5,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Prediction]:
    """Yield the prediction of each case, or its `error`; an image that several cases of a batch share is encoded once.

    Raises:
        ValueError: `top_k` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    remaining = iter(cases)
    with ThreadPoolExecutor() as threads:  # decoders release the lock of the interpreter
        while batch := [*islice(remaining, batch_size)]:
            studies = {_key(case): case.images for case in batch}
            decoded = dict(zip(studies, threads.map(partial(_decode, model), studies.values()), strict=True))
            errors = [case.error or _problem(model, case, decoded[_key(case)]) for case in batch]
            usable = [case for case, error in zip(batch, errors, strict=True) if error is None]
            streams = _encode(model, processor, usable, decoded) if usable else {}
            predicted = iter(PREDICTORS[type(model)](model, processor, streams, top_k) if usable else [])
            for case, error in zip(batch, errors, strict=True):
                yield case.facts | (next(predicted) if error is None else {"error": error})


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions as JSON, or as CSV where the file has that suffix: a row each, the same columns for all.

    Raises:
        ValueError: The suffix is another one.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        if path.suffix == ".json":
            file.write(json.dumps([_rounded(prediction) for prediction in predictions], indent=2, ensure_ascii=False))
            return
        rows = [_flat(prediction) for prediction in predictions]
        columns = dict.fromkeys(name for row in rows for name in row if name != "error")
        table = csv.DictWriter(file, [*columns, "error"], restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _key(case: Case) -> tuple[Any, ...]:
    """Return what is the same for the same images."""
    contents = ((name, getattr(image, "content", image)) for name, image in case.images.items())
    return tuple((name, image if isinstance(image, Hashable) else id(image)) for name, image in contents)


def decode_images(model: M3AEPreTrainedModel, images: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images of a row that a model reads, decoded, by view.

    Raises:
        ValueError: An image cannot be read, or none is one of the model's several views.
    """
    views = model.config.views or ["image"]
    present = {name: image for name, image in images.items() if image is not None}
    chosen = {view: present[view] for view in views if view in present}
    if present and not chosen:
        if len(views) > 1 and len(present) > 1:
            raise ValueError(f"images {', '.join(present)}: expected some of the views {', '.join(views)}")
        chosen = {views[0]: next(iter(present.values()))}
    return {view: _picture(image) for view, image in chosen.items()}


def _decode(model: M3AEPreTrainedModel, images: Mapping[str, Any]) -> dict[str, Any] | str:
    try:
        return decode_images(model, images)
    except (TypeError, ValueError) as error:
        return str(error)


def _picture(image: Any) -> Any:
    if isinstance(image, ImageFile | StoredImage):
        return image.decode()
    return load_image(image) if isinstance(image, str | Path | bytes) else check_picture(image)


def _problem(model: M3AEPreTrainedModel, case: Case, decoded: dict[str, Any] | str) -> str | None:
    """Return the reason why nothing can be predicted, or None."""
    if isinstance(decoded, str):
        return decoded
    reads = model.config.input_streams or STREAMS
    lacking = [name for name, value in (("image", decoded), ("text", case.text)) if name in reads and not value]
    is_enough = isinstance(model, M3AEForClassification | M3AEForReportGeneration) and len(lacking) < len(reads)
    name = {"text": "question"} if isinstance(model, M3AEForQuestionAnswering) else {}
    return (
        f"no {' and no '.join(name.get(stream, stream) for stream in lacking)}" if lacking and not is_enough else None
    )


def _encode(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, cases: Sequence[Case], decoded: Mapping[Any, Any]
) -> Streams:
    trunk, reads, streams = model.base_model, model.config.input_streams or STREAMS, dict[str, Stream]()
    assert isinstance(trunk, M3AEModel)
    texts = [case.text or "" for case in cases]
    if "text" in reads and any(texts):
        present = torch.tensor([bool(text) for text in texts], device=model.device)
        streams["text"] = trunk.encode_text(**encode_words(model, processor, texts), present=present)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(map(_key, cases)))}
    if "image" in reads and any(decoded[key] for key in numbers):
        rows = torch.tensor([numbers[_key(case)] for case in cases], device=model.device)
        images = _images(model, processor, [decoded[key] for key in numbers])
        streams["image"] = trunk.encode_image(**images).select(rows)
    return streams


def _images(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, studies: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what `encode_image` takes of U studies, images by view: tensors (U, [V,] …)."""
    views = model.config.views or ["image"]
    present = torch.tensor([[view in study for view in views] for study in studies], device=model.device)
    encoded = encode_pixels(model, processor, [study[view] for study in studies for view in views if view in study])
    images = {name: values.new_zeros(*present.shape, *values.shape[1:]) for name, values in encoded.items()}
    for name, values in encoded.items():
        images[name][present] = values
    images["present"] = present
    return images if len(views) > 1 else {name: values[:, 0] for name, values in images.items()}


def _classes(model: M3AEForClassification, processor: M3AEProcessor, streams: Streams, top_k: int) -> list[Prediction]:
    probabilities = model.probabilities(model.score(streams).float())
    names: Mapping[Any, str] = model.config.id2label or {}
    several = model.config.problem_type == "multi_label_classification"
    predictions = []
    for row, decided in zip(probabilities.tolist(), model.decide(probabilities).tolist(), strict=True):
        labels = [names[column] for column, has_label in enumerate(decided) if has_label]
        by_name = {names[column]: probability for column, probability in enumerate(row)}
        predictions.append({"prediction": labels if several else labels[0], "probabilities": by_name})
    return predictions


def _answers(
    model: M3AEForQuestionAnswering, processor: M3AEProcessor, streams: Streams, top_k: int
) -> list[Prediction]:
    probabilities = model.probabilities(model.score(streams).float())
    best = probabilities.topk(min(top_k, probabilities.shape[-1]))
    names: Mapping[Any, str] = model.config.id2label or {}
    predictions = []
    for columns, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        answers = [{"answer": names[c], "probability": value} for c, value in zip(columns, values, strict=True)]
        first = {"prediction": answers[0]["answer"], "probability": answers[0]["probability"]}
        predictions.append({**first, "answers": answers})
    return predictions


def _reports(
    model: M3AEForReportGeneration, processor: M3AEProcessor, streams: Streams, top_k: int
) -> list[Prediction]:
    written = model.generate(memory=model.fuse(streams))
    return [{"report": text.strip()} for text in processor.batch_decode(written, skip_special_tokens=True)]


def _scores(
    model: M3AEForPreTraining | M3AEForImageTextRetrieval, processor: M3AEProcessor, streams: Streams, top_k: int
) -> list[Prediction]:
    scores = {}
    if has_matching_head(model):
        scores["score"] = model.score(streams["text"], streams["image"])
    if model.itc_head is not None:
        text, image = (model.itc_head.embed(name, streams[name]) for name in STREAMS)
        scores["cosine"] = (text * image).sum(-1)
    rows = zip(*(values.float().tolist() for values in scores.values()), strict=True)
    return [dict(zip(scores, row, strict=True)) for row in rows]


PREDICTORS: dict[type[M3AEPreTrainedModel], Callable[..., list[Prediction]]] = {
    M3AEForClassification: _classes,
    M3AEForQuestionAnswering: _answers,
    M3AEForReportGeneration: _reports,
    M3AEForImageTextRetrieval: _scores,
    M3AEForPreTraining: _scores,
}
FORMATS = (".csv", ".json")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _flat(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as cells: a column for each probability, several labels between semicolons."""
    cells = dict[str, Any]()
    for name, value in _rounded(prediction).items():
        if name == "probabilities":
            cells |= {f"probability_{label}": probability for label, probability in value.items()}
        elif name == "answers":
            further = enumerate(value[1:], start=2)
            cells |= {f"{key}_{rank}": item for rank, answer in further for key, item in answer.items()}
        else:
            cells[name] = ";".join(value) if isinstance(value, list) else value
    return cells
