"""`m3ae reconstruct`: what a pre-trained model fills in where an image or a text is hidden."""

from __future__ import annotations

from pathlib import Path

import click

from m3ae.commands.shared import AS_JSON, DEVICE, FILE, MODEL, PATH, be_quiet, print_json

SHARE = click.FloatRange(0, 1)


@click.command()
@MODEL
@click.option("--image", "images", type=FILE, multiple=True, help="an image; may be given again")
@click.option("--text", "texts", multiple=True, help="its text; as many as images, one for all, or none")
@click.option("--mask-ratio", type=SHARE, help="share of the patches to hide  [default: the model's]")
@click.option("--word-ratio", type=SHARE, help="share of the words to hide, at least one  [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True, help="of the choice of patches and words")
@click.option("--output", type=PATH, default=Path("reconstruction.png"), show_default=True, help="PNG to draw")
@AS_JSON
@DEVICE
def reconstruct(
    model: str,
    images: tuple[Path, ...],
    texts: tuple[str, ...],
    mask_ratio: float | None,
    word_ratio: float | None,
    seed: int,
    output: Path,
    as_json: bool,
    device: str | None,
) -> None:
    """Hide parts of images and texts, and draw what a model fills in.

    Patches of images and words of texts are hidden, and a pre-trained model predicts them. The picture shows each
    image, what the model saw of it, what it made of it and the error of each patch. A text helps with the image,
    and the image with the hidden words; either may be left out. Without image nothing is drawn.

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
    found = fill_in(
        loaded,
        processor,
        [*read_images(images)] or [None] * count,
        all_texts,
        mask_ratio=mask_ratio,
        word_ratio=word_ratio,
        seed=seed,
    )
    if images:
        from m3ae.figures import save_figure
        from m3ae.inference.drawing import draw_samples

        save_figure(draw_samples(loaded, found, all_texts, mask_ratio), output)
    if as_json:
        samples = [
            {
                "image": str(images[number]) if images else None,
                "text": all_texts[number],
                "error": sample.mean_error,
                "words": None if sample.words is None else [word._asdict() for word in sample.words],
            }
            for number, sample in enumerate(found)
        ]
        print_json({"picture": str(output) if images else None, "samples": samples})
        return
    for number, sample in enumerate(found):
        if sample.mean_error is not None:
            click.echo(f"{images[number]}: mean absolute error {sample.mean_error:.3f} of the grey range")
        for word in sample.words or []:
            click.echo(f"  {word.word} → {word.predicted} ({word.score:.2f})")
    if images:
        click.echo(output)
