"""`m3ae predict`: what a fine-tuned model says about images."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m3ae.commands.options import AS_JSON, DEVICE, OUTPUT_FILE, PATH, be_quiet, print_result

if TYPE_CHECKING:
    from m3ae.inference.prediction import Case, Loaded, Prediction

OUTPUT = "a .csv or .json file  [default: the predictions are printed]"
TEXT = "a question, or a text to score, about each image; may be repeated  [default: that of the row]"
LISTED = 20  # rows without prediction, on the standard error


@click.command()
@click.argument("model")
@click.argument("inputs", type=PATH, nargs=-1, required=True, metavar="INPUT...")
@click.option("--output", type=OUTPUT_FILE, help=OUTPUT)
@click.option("--question", "--text", "texts", multiple=True, help=TEXT)
@click.option("--split", help="split of a prepared set  [default: all]")
@click.option("--top-k", type=click.IntRange(1), help="answers to each question  [default: 5]")
@click.option("--attention", type=PATH, help="new folder for a picture of each row: where the model looks")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="rows at once")
@AS_JSON
@DEVICE
def predict(
    model: str,
    inputs: tuple[Path, ...],
    output: Path | None,
    texts: tuple[str, ...],
    split: str | None,
    top_k: int | None,
    attention: Path | None,
    batch_size: int,
    device: str | None,
) -> None:
    """Predict classes, answers, reports or scores of images.

    MODEL is the folder of a fine-tuned model or of its run, or a hub name. An INPUT is an image, DICOM too, a folder
    of images, with a table or without, a table, or a set made by m3ae prepare. A classifier gives the probability of
    each class, and the labels whose probability reaches the threshold that was chosen on validation. A model for
    questions answers the question of each row. A model for reports writes a report on each row. A model for retrieval
    scores the text of each row. A row that cannot be predicted, such as that of a broken image, has the reason in the
    column error. The exit status is 1 if no row can be predicted.

    \b
    Examples:
      m3ae predict runs/iu_xray_classification new_images --output predictions.csv
      m3ae predict runs/vqa_rad_small chest.png --question "Is there an effusion?" --attention pictures
    """  # noqa: D301
    from tqdm import tqdm

    from m3ae.inference.prediction import FORMATS, open_predictor, predict_cases, read_cases, write_predictions
    from m3ae.inference.rows import read_rows
    from m3ae.models.finetuned import M3AEForQuestionAnswering

    be_quiet()
    if output is not None and output.suffix not in FORMATS:
        raise click.UsageError(f"--output {output}: expected a name that ends in {' or '.join(FORMATS)}")
    if attention is not None and attention.exists():
        raise FileExistsError(f"{attention} exists: choose another folder for --attention")
    loaded = open_predictor(model, device)
    if top_k is not None and not isinstance(loaded[0], M3AEForQuestionAnswering):
        raise click.UsageError(f"--top-k counts answers, and {model} gives none")
    rows = chain.from_iterable(read_rows(source, split) for source in inputs)
    cases = [*read_cases(rows, loaded[0], texts)]
    made = predict_cases(*loaded, cases, top_k=top_k or 5, batch_size=batch_size)
    predictions = [*tqdm(made, desc="predict", unit="row", total=len(cases), disable=None, leave=False)]
    if attention is not None:
        _draw(loaded, cases, predictions, attention)
    if output is not None:
        write_predictions(output, predictions)
    _report_errors(predictions)
    print_result(predictions, [output] if output else [*map(_line, predictions), attention])
    if predictions and all("error" in prediction for prediction in predictions):
        raise click.exceptions.Exit(1)


def _draw(loaded: Loaded, cases: list[Case], predictions: list[Prediction], folder: Path) -> None:
    """Draw where the model looks, and add the file to each prediction."""
    from m3ae.figures import save_figure
    from m3ae.inference.drawing import draw_word_attention
    from m3ae.inference.prediction import decode_images

    for number, (case, prediction) in enumerate(zip(cases, predictions, strict=True), start=1):
        if "error" not in prediction and (images := decode_images(loaded[0], case.images)):
            figure = draw_word_attention(*loaded, images, case.text, _result(prediction))
            prediction["attention"] = str(save_figure(figure, folder / f"{number:05d}.png"))


def _report_errors(predictions: list[Prediction]) -> None:
    errors = [f"{prediction['id']}: {prediction['error']}" for prediction in predictions if "error" in prediction]
    lines = [f"{len(errors)} of {len(predictions)} rows have no prediction:", *errors[:LISTED]] if errors else []
    lines += [f"and {len(errors) - LISTED} more"] * (len(errors) > LISTED)
    for line in lines:
        click.echo(line, err=True)


def _line(prediction: Prediction) -> str:
    text = prediction.get("question", prediction.get("text"))
    return ": ".join([prediction["id"], *([text] if text else []), _result(prediction)])


def _result(prediction: Prediction) -> str:
    if "error" in prediction:
        return f"no prediction, {prediction['error']}"
    if "report" in prediction:
        return str(prediction["report"])
    scores: dict[str, Any] = prediction.get("probabilities") or {
        answer["answer"]: answer["probability"] for answer in prediction.get("answers", [])
    }
    if not scores:
        return ", ".join(f"{name} {prediction[name]:.3f}" for name in ("score", "cosine") if name in prediction)
    decided = prediction["prediction"]
    best = sorted(scores.items(), key=lambda item: -item[1])[:5]
    listed = ", ".join(f"{name} {score:.3f}" for name, score in best)
    return f"{', '.join(decided) or 'none'} ({listed})" if isinstance(decided, list) else listed
