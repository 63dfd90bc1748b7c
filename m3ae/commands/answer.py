"""`m3ae answer`: questions about images."""

from __future__ import annotations

from pathlib import Path

import click

from m3ae.commands.options import AS_JSON, DEVICE, FILE, MODEL, OUTPUT_FILE, be_quiet, print_result


@click.command()
@MODEL
@click.option("--image", "images", type=FILE, multiple=True, required=True, help="an image; may be repeated")
@click.option("--question", "questions", multiple=True, required=True, help="a question; may be repeated")
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="answers to each question")
@click.option("--attention", type=OUTPUT_FILE, help="PNG of where each word looks: for one image and one question")
@AS_JSON
@DEVICE
def answer(
    model: str,
    images: tuple[Path, ...],
    questions: tuple[str, ...],
    top_k: int,
    attention: Path | None,
    device: str | None,
) -> None:
    """Answer questions about images.

    The model answers each question about each image. The answers are the most probable ones of the list that the model
    was fine-tuned on.

    \b
    Examples:
      m3ae answer --model runs/vqa_rad_small --image chest.png --question "Is there an effusion?"
      m3ae answer --model runs/vqa_rad_small --image chest.png --question "What is wrong?" --attention words.png
    """  # noqa: D301
    pairs = [(path, question) for path in images for question in questions]
    if attention is not None and len(pairs) > 1:
        raise click.UsageError(
            f"--attention draws one question about one image, got {len(questions)} and {len(images)}"
        )
    from m3ae import M3AEForQuestionAnswering
    from m3ae.inference import answer as answer_questions
    from m3ae.inference import load_model, read_images

    be_quiet()
    loaded, processor = load_model(model, [M3AEForQuestionAnswering], device)
    opened = dict(zip(images, read_images(images), strict=True))
    shown = [opened[path] for path, _ in pairs]
    answers = answer_questions(loaded, processor, shown, [question for _, question in pairs], top_k=top_k)
    if attention is not None:
        from m3ae.figures import save_figure
        from m3ae.inference.drawing import draw_word_attention

        note = f"answer: {answers[0][0].answer} ({answers[0][0].score:.2f})"
        save_figure(draw_word_attention(loaded, processor, shown[0], questions[0], note), attention)
    results = [
        {"image": str(path), "question": question, "answers": [answer._asdict() for answer in best]}
        for (path, question), best in zip(pairs, answers, strict=True)
    ]
    lines = []
    for (path, question), best in zip(pairs, answers, strict=True):
        lines += [f"{path}: {question}", *(f"  {answer.score:.3f}  {answer.answer}" for answer in best)]
    print_result(results, [*lines, attention])
