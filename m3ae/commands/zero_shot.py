"""`m3ae zero-shot`: classes from prompts, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m3ae.commands.options import AS_JSON, DEVICE, MODEL, OUTPUT_FILE, PATH, be_quiet, print_result

if TYPE_CHECKING:
    from m3ae.inference import ZeroShotClassifier

CLASS = "a class, and a text for it in place of its name; a text that ends in a full stop takes no template"
TEMPLATE = "text with {} in place of the class; may be repeated  [default: {}]"
NEGATIVE = "text for an image without the label; may be repeated  [default: no {}]"
RERANK = "best classes of each image that the matching head orders anew"


@click.command("zero-shot")
@MODEL
@click.option("--image", "images", type=PATH, multiple=True, help="an image; may be repeated")
@click.option("--data", type=PATH, help="prepared set to measure on, instead of images")
@click.option("--split", help="split of the set  [default: test]")
@click.option("--label-column", help="column of the set with the label, or the list of labels")
@click.option("--image-columns", help="columns of images of the set, separated by commas  [default: all]")
@click.option("--resamples", type=click.IntRange(0), help="draws of the bootstrap, 0 for none  [default: 1000]")
@click.option("--class", "classes", multiple=True, required=True, metavar="NAME[=TEXT]", help=CLASS)
@click.option("--template", "templates", multiple=True, help=TEMPLATE)
@click.option("--multi-label", is_flag=True, help="an image may have any number of the classes")
@click.option("--negative-template", "negatives", multiple=True, help=NEGATIVE)
@click.option("--rerank", type=click.IntRange(0), default=0, show_default=True, help=RERANK)
@click.option("--output", type=OUTPUT_FILE, help="file for the probabilities of every image, as JSON lines")
@AS_JSON
@DEVICE
def zero_shot(
    model: str,
    images: tuple[Path, ...],
    data: Path | None,
    classes: tuple[str, ...],
    templates: tuple[str, ...],
    multi_label: bool,
    negatives: tuple[str, ...],
    rerank: int,
    output: Path | None,
    device: str | None,
    **of_data: Any,
) -> None:
    """Classify images by prompts, without training.

    The prompts of a class are the templates with its name, or with its texts where --class gives some; NAME may be
    repeated. The class whose prompts are nearest to the image is the most probable one. With --multi-label each class
    is decided for itself, between the templates and the negative ones. With --data the classes are compared with the
    labels of a prepared set, beside the same with the images of other rows and with a grey image. Choose prompts on
    validation. An image that cannot be read is listed with the reason; the exit status is 1 if none can.

    \b
    Examples:
      m3ae zero-shot --model runs/phantom --image chest.png --class nodule --class effusion
      m3ae zero-shot --model runs/phantom --data data/phantom-12k --label-column finding --class nodule \\
        --class device=pacemaker --class "none=The lungs are clear." --template "There is a {}."
    """  # noqa: D301
    if bool(images) == (data is not None):
        raise click.UsageError("give either --image or --data")
    if negatives and not multi_label:
        raise click.UsageError("--negative-template needs --multi-label: without it classes exclude each other")
    chosen = {name: value for name, value in of_data.items() if value is not None}
    if (data is None and chosen) or (data is not None and "label_column" not in chosen):
        raise click.UsageError("--data needs --label-column, and takes --split, --image-columns and --resamples alone")
    from m3ae.inference import ZeroShotClassifier, load_model
    from m3ae.inference.search import SEARCHING
    from m3ae.inference.zero_shot import NEGATIVE_TEMPLATES, TEMPLATES

    be_quiet()
    texts: dict[str, list[str]] = {}
    for name, _, text in (item.partition("=") for item in classes):
        texts.setdefault(name, []).append(text or name)
    negatives = (negatives or NEGATIVE_TEMPLATES) if multi_label else ()
    loaded, processor = load_model(model, SEARCHING, device)
    classifier = ZeroShotClassifier(loaded, processor, texts, templates or TEMPLATES, negatives, rerank)
    results: Any
    if data is None:
        results = rows = _classify(classifier, images)
        lines = []
        for row in rows:
            best = sorted(row.get("scores", {}).items(), key=lambda item: -item[1])
            lines += [f"{row['image']}:", *(f"  {score:.3f}  {name}" for name, score in best)]
    else:
        from m3ae.evaluation.zero_shot import measure_zero_shot
        from m3ae.training.progress import format_metrics

        split, columns = chosen.pop("split", "test"), chosen.pop("image_columns", None)
        columns = [name.strip() for name in columns.split(",")] if columns else []
        metrics, rows, left_out = measure_zero_shot(classifier, data, split, image_columns=columns, **chosen)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        results = {"rows": len(rows), "left_out": left_out, "prompts": classifier.prompts, "metrics": finite}
        table = format_metrics(model, {f"{split}/{name}": value for name, value in metrics.items()})
        lines = [table, f"{len(rows)} rows; {left_out} without an image or one of the classes left out"]
        labels = {label for row in rows for label in row["truth"]}
        if absent := [name for name in classifier.names if name not in labels]:
            lines.append(f"no row has the label {', '.join(absent)}")
    if output is not None:
        from m3ae.files import write_text

        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print_result(results, [*lines, output])
    if data is None and all("error" in row for row in rows):
        raise click.exceptions.Exit(1)


def _classify(classifier: ZeroShotClassifier, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the scores of each image, or the error of one that cannot be read, which the standard error names."""
    from m3ae.images.files import UnreadableImageError, load_image

    rows, images = list[dict[str, Any]](), list[Any]()
    for path in paths:
        rows.append({"image": str(path)})
        try:
            images.append(load_image(path))
        except UnreadableImageError as error:
            rows[-1]["error"] = str(error)
            click.echo(error, err=True)
    scores = iter(classifier.classify(images))
    return [row if "error" in row else row | {"scores": next(scores)} for row in rows]
