"""`m3ae reconstruct`: what a pre-trained model fills in where an image or a text is hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import AS_JSON, DEVICE, FILE, MODEL, OUTPUT_FILE, SEED, be_quiet, print_result

SHARE = click.FloatRange(0, 1)


@click.command()
@MODEL
@click.option("--image", "images", type=FILE, multiple=True, help="an image; may be repeated")
@click.option("--text", "texts", multiple=True, help="its text; as many as images, one for all, or none")
@click.option("--mask-ratio", type=SHARE, help="share of the patches to hide  [default: the model's]")
@click.option("--word-ratio", type=SHARE, help="share of the words to hide, at least one  [default: the model's]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="seed of the choice of patches and words")
@click.option("--output", type=OUTPUT_FILE, default="reconstruction.png", show_default=True, help="PNG to draw")
@AS_JSON
@DEVICE
def reconstruct(
    model: str,
    images: tuple[Path, ...],
    texts: tuple[str, ...],
    output: Path,
    device: str | None,
    **options: Any,
) -> None:
    """Hide patches and words, and draw what a model fills in.

    A pre-trained model predicts hidden patches of images and hidden words of texts. The picture shows each image, the
    model's view of it, the model's reconstruction and the error of each patch. A text helps with the image, and the
    image with the hidden words; either may be left out. Without an image nothing is drawn.

    \b
    Examples:
      m3ae reconstruct --model runs/quickstart --image chest.png --text "Large effusion in the left lower zone."
      m3ae reconstruct --model runs/quickstart --image chest.png --mask-ratio 0.5 --output half.png
    """  # noqa: D301
    count = len(images) or len(texts)
    if not count or (images and len(texts) not in (0, 1, count)):
        raise click.UsageError(
            f"got {len(images)} --image and {len(texts)} --text: give images, texts, or images with one text for all "
            "or one for each"
        )
    from m3ae import M3AEForPreTraining
    from m3ae.inference import load_model, read_images
    from m3ae.inference import reconstruct as fill_in

    be_quiet()
    loaded, processor = load_model(model, [M3AEForPreTraining], device)
    all_texts: list[str | None] = [*(texts or (None,))] * (1 if len(texts) == count else count)
    samples = fill_in(loaded, processor, [*read_images(images)] or [None] * count, all_texts, **options)
    if images:
        from m3ae.figures import save_figure
        from m3ae.inference.drawing import draw_samples

        save_figure(draw_samples(loaded, samples, all_texts, options["mask_ratio"]), output)
    names: list[str | None] = [*map(str, images)] or [None] * count
    described, lines = list[dict[str, Any]](), list[str]()
    for name, text, sample in zip(names, all_texts, samples, strict=True):
        words = None if sample.words is None else [word._asdict() for word in sample.words]
        described.append({"image": name, "text": text, "error": sample.mean_error, "words": words})
        if sample.mean_error is not None:
            lines.append(f"{name}: mean absolute error {sample.mean_error:.3f} of the grey range")
        lines += [f"  {word.word} → {word.predicted} ({word.score:.2f})" for word in sample.words or []]
    picture = str(output) if images else None
    print_result({"picture": picture, "samples": described}, [*lines, picture])
