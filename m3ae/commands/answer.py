"""`m3ae answer`: questions about images."""

from __future__ import annotations

from pathlib import Path

import click

from m3ae.commands.shared import AS_JSON, DEVICE, FILE, MODEL, PATH, be_quiet, print_json


@click.command()
@MODEL
@click.option("--image", "images", type=FILE, multiple=True, required=True, help="an image; may be given again")
@click.option("--question", "questions", multiple=True, required=True, help="a question; may be given again")
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="answers to each question")
@click.option("--attention", type=PATH, help="PNG to draw where in the image each word looks: one image, one question")
@AS_JSON
@DEVICE
def answer(
    model: str,
    images: tuple[Path, ...],
    questions: tuple[str, ...],
    top_k: int,
    attention: Path | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Answer questions about images.

    Each question is asked about each image. The answers are the most probable ones of the list that the model was
    fine-tuned on.

    \b
    Examples:
      m3ae answer --model runs/vqa_rad_small --image chest.png --question "Is there an effusion?"
      m3ae answer --model runs/vqa_rad_small --image chest.png --question "What is wrong?" --attention words.png
    """  # noqa: D301
    if attention is not None and len(images) * len(questions) > 1:
        raise click.UsageError(
            f"--attention draws one question about one image, got {len(questions)} and {len(images)}"
        )
    from m3ae import M3AEForQuestionAnswering
    from m3ae.inference import answer as answer_questions
    from m3ae.inference import load_model, read_images

    be_quiet()
    loaded, processor = load_model(model, [M3AEForQuestionAnswering], device)
    opened = read_images(images)
    pairs = [(number, question) for number in range(len(images)) for question in questions]
    found = answer_questions(
        loaded, processor, [opened[number] for number, _ in pairs], [question for _, question in pairs], top_k=top_k
    )
    if attention is not None:
        from m3ae.figures import save_figure
        from m3ae.inference.drawing import draw_word_attention

        note = f"answer: {found[0][0].answer} ({found[0][0].score:.2f})"
        save_figure(draw_word_attention(loaded, processor, opened[0], questions[0], note), attention)
    if as_json:
        answers = [[own._asdict() for own in answers] for answers in found]
        print_json(
            [
                {"image": str(images[number]), "question": question, "answers": own}
                for (number, question), own in zip(pairs, answers, strict=True)
            ]
        )
        return
    for (number, question), own in zip(pairs, found, strict=True):
        click.echo(f"{images[number]}: {question}")
        for said in own:
            click.echo(f"  {said.score:.3f}  {said.answer}")
    if attention is not None:
        click.echo(attention)
