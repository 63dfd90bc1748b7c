"""Retrieval on N × N pairs through the matching head: each input encoded once, against encoding both for every pair.

    python benchmarks/retrieval.py --data data/iu_xray [--model runs/iu_xray/model] [--json figures.json]

`baseline` is the procedure of the published code: for each image and each batch of texts, padded to the maximum, both
encoders and the whole fusion, attention weights materialised. Where that takes too long, `--baseline-images` times it
on some of the images, against all texts, and the rest is extrapolated. What it was timed on is compared with ours: in
fp32 the scores have to agree, and so the ranks, but for ties within that agreement. `two stages` re-ranks the nearest
by the contrastive head; its recall says something only of a trained `--model` that has one. Without `--data` phantoms
are made. On a CPU the seconds are processor time over all threads, so that other work on the machine disturbs little;
those of the wall clock are in the file of `--json`, too.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m3ae import M3AEConfig, M3AEForImageTextRetrieval, M3AEProcessor
from m3ae.data.collate import TrunkCollator
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_manifest
from m3ae.data.samples import Sample, SampleDataset, trunk_columns
from m3ae.data.tokenizer import train_tokenizer
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.processing import M3AEImageProcessor
from m3ae.models.retrieval import embed, encode_images, encode_texts, nearest, score_both_ways, score_pairs
from m3ae.transfer.text_encoders import load_tokenizer

TOLERANCE = 1e-3  # of the standard deviation of the scores: the same sums in another order


class Inputs(NamedTuple):
    """N images (N, 3, H, W), the tokens of N texts, and the same padded to the maximum (N, L) with their mask."""

    pixel_values: Tensor
    tokens: list[list[int]]
    input_ids: Tensor
    attention_mask: Tensor


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Seconds for retrieval among N × N pairs, by procedure.")
    parser.add_argument("--data", type=Path, help="prepared folder; phantoms are made without it")
    parser.add_argument("--split", default="test", help="split of the prepared folder")
    parser.add_argument("--model", help="folder or hub name of a trained model; without it weights are random")
    parser.add_argument(
        "--preset", choices=["tiny", "mini", "small", "base"], default="small", help="size of a random model"
    )
    parser.add_argument("--tokenizer", help="of a random model; by default one of 8,192 words is trained on the texts")
    parser.add_argument("--pairs", type=int, default=200, help="N")
    parser.add_argument("--baseline-images", type=int, help="images that the baseline is timed on; all by default")
    parser.add_argument("--max-text-length", type=int, default=64, help="tokens that texts are cut and padded to")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs fused at once")
    parser.add_argument("--k", type=int, default=20, help="candidates re-ranked by two stages")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of all procedures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary) / "phantoms"
        if arguments.data is None:
            prepare("phantom", folder, num_studies=12 * arguments.pairs, image_size=384)
        pairs = read_pairs(folder, arguments.split, arguments.pairs)
        figures = measure(arguments, pairs)
    print(report(arguments, figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def read_pairs(folder: Path, split: str, count: int) -> list[Sample]:
    """Return the first `count` rows of the split with both an image and a text."""
    columns = trunk_columns(list(load_manifest(folder).splits[split].images), "text")
    dataset = SampleDataset(folder, split, columns)
    samples = (dataset.first(index, index) for index in range(len(dataset)))
    complete = [sample for sample in samples if sample.images and sample.text is not None]
    return complete[:count]


@torch.no_grad()
def measure(arguments: argparse.Namespace, pairs: Sequence[Sample]) -> dict[str, Any]:
    """Time the three procedures on the same inputs and compare what they find."""
    model, processor = build(arguments, pairs)
    inputs = prepare_inputs(model, processor, pairs, arguments.max_text_length)
    rows = torch.arange(len(pairs))
    ids = [torch.tensor([getattr(pair, f"{name}_id") for pair in pairs]) for name in ("text", "image")]
    equal_texts, equal_images = ((own[:, None] == own).float() for own in ids)
    relevant = equal_texts @ equal_images > 0  # (N, N): an image is right that stands with an equal text
    sampled = torch.linspace(0, len(pairs) - 1, arguments.baseline_images or len(pairs)).round().long().unique()
    batch_size, plain = arguments.batch_size, materialising(model)
    with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
        for procedure in (encode_once, partial(two_stages, k=1)):  # warm up
            procedure(model, inputs._replace(pixel_values=inputs.pixel_values[:1], tokens=inputs.tokens[:1]), 1)
        encode_anew(plain, inputs, sampled[:1], batch_size)
        baseline, expected = timed(lambda: encode_anew(plain, inputs, sampled, batch_size))
        cached, scores = timed(lambda: encode_once(model, inputs, batch_size))
        two_stage, both = timed(lambda: two_stages(model, inputs, batch_size, arguments.k))
    found, right = scores.T[sampled], relevant.T[sampled]
    expected_ranks = ranks_of_best_match(expected, right)
    if arguments.precision == "fp32":
        check_agreement(expected, found, right)
    everything, share = rows.expand(len(pairs), -1), len(sampled) / len(pairs)
    clock = 0 if arguments.device == "cpu" else 1
    return {
        "pairs": len(pairs),
        "mean_text_length": sum(map(len, inputs.tokens)) / len(pairs),
        "baseline_images": len(sampled),
        "seconds": {
            "baseline": baseline[clock] / share,
            "encoded once": cached[clock],
            "two stages": two_stage[clock],
        },
        "wall_seconds": {"baseline": baseline[1] / share, "encoded once": cached[1], "two stages": two_stage[1]},
        "ratio": baseline[clock] / share / cached[clock],
        "two_stage_ratio": cached[clock] / two_stage[clock],
        "equal_ranks": float((expected_ranks == ranks_of_best_match(found, right)).float().mean()),
        "recall@10": recalls([(everything, scores), (everything, scores.T)], relevant),
        "two_stage_recall@10": recalls(both, relevant),
    }


def build(arguments: argparse.Namespace, pairs: Sequence[Sample]) -> tuple[M3AEForImageTextRetrieval, M3AEProcessor]:
    """Load the model, or make one of the preset with random weights; with its processor."""
    if arguments.model:
        model = M3AEForImageTextRetrieval.from_pretrained(arguments.model)
        return model.eval().to(arguments.device), M3AEProcessor.from_pretrained(arguments.model)
    texts = [pair.text for pair in pairs if pair.text]
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else train_tokenizer(texts, 8192)
    torch.manual_seed(0)
    wide = {"initializer_range": 0.1}  # with the usual 0.02 all scores of a random model are nearly the same
    text_config = {"vocab_size": len(tokenizer)} | wide
    config = M3AEConfig.named(arguments.preset, itc_weight=1.0, text_config=text_config, **wide)
    image_processor = M3AEImageProcessor.for_size(config.image_config.image_size)
    model = M3AEForImageTextRetrieval(config)
    return model.eval().to(arguments.device), M3AEProcessor(image_processor, tokenizer)


def prepare_inputs(
    model: M3AEForImageTextRetrieval, processor: M3AEProcessor, pairs: Sequence[Sample], max_text_length: int
) -> Inputs:
    """Decode and tokenize once, outside what is timed."""
    collator = TrunkCollator(trunk_modalities(model.config), BatchOptions(processor.tokenizer, max_text_length))
    texts = [pair.text for pair in pairs]
    padded = processor.tokenizer(
        texts, padding="max_length", truncation=True, max_length=max_text_length, return_tensors="pt"
    )
    tokens = processor.tokenizer(texts, truncation=True, max_length=max_text_length)["input_ids"]
    pixel_values = collator.inputs(pairs)["pixel_values"].to(model.device)
    return Inputs(
        pixel_values, tokens, padded["input_ids"].to(model.device), padded["attention_mask"].to(model.device)
    )


def materialising(model: M3AEForImageTextRetrieval) -> M3AEForImageTextRetrieval:
    """Return a copy of the model that keeps the weights of every attention in memory."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


def encode_anew(model: M3AEForImageTextRetrieval, inputs: Inputs, images: Tensor, batch_size: int) -> Tensor:
    """Score some images against all texts, both encoded anew for every pair: (images, N)."""
    rows = []
    for image in images.tolist():
        scores = []
        for ids, mask in zip(inputs.input_ids.split(batch_size), inputs.attention_mask.split(batch_size), strict=True):
            repeated = inputs.pixel_values[image].expand(len(ids), -1, -1, -1)
            pooled = model.m3ae(repeated, ids, mask).pooler_output
            scores.append(model.itm_head(pooled)[:, 1].float())
        rows.append(torch.cat(scores))
    return torch.stack(rows).cpu()


def encode_once(model: M3AEForImageTextRetrieval, inputs: Inputs, batch_size: int) -> Tensor:
    """Score all texts against all images: (N, N)."""
    texts = encode_texts(model.m3ae, inputs.tokens, batch_size)
    images = encode_images(model.m3ae, inputs.pixel_values.split(batch_size))
    pairs = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(images)))
    return score_pairs(model.score, texts, images, pairs, batch_size=batch_size).view(len(texts), len(images))


def two_stages(
    model: M3AEForImageTextRetrieval, inputs: Inputs, batch_size: int, k: int
) -> list[tuple[Tensor, Tensor]]:
    """Score the k nearest (N, k), images for texts and texts for images: their numbers and scores."""
    if model.itc_head is None:
        raise SystemExit("The model has no contrastive head, and so no first stage: pre-train it with itc_weight.")
    texts = encode_texts(model.m3ae, inputs.tokens, batch_size)
    images = encode_images(model.m3ae, inputs.pixel_values.split(batch_size))
    sides = embed(model.itc_head, "text", texts), embed(model.itc_head, "image", images)
    numbers = [nearest(queries, candidates, k)[1] for queries, candidates in (sides, sides[::-1])]
    scores = score_both_ways(*numbers, partial(score_pairs, model.score, texts, images, batch_size=batch_size))
    return [*zip(numbers, scores, strict=True)]


def recalls(found: Sequence[tuple[Tensor, Tensor]], relevant: Tensor) -> dict[str, float]:
    """Return the recall at 10 of texts to images and back, from numbers and scores (N, K) of what each way finds.

    `relevant` (N, N) says which images are right for which texts.
    """
    sides = zip(("text_to_image", "image_to_text"), found, (relevant, relevant.T), strict=True)
    return {
        name: float((ranks_of_best_match(scores, right.gather(1, numbers)) <= 10).double().mean())
        for name, (numbers, scores), right in sides
    }


def ranks_of_best_match(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return the rank (Q,) of the best-placed relevant candidate of each query, ∞ without one; ties come first."""
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    ahead = (~(scores < best) & ~relevant).sum(1)
    return (ahead + 1).double().masked_fill(~relevant.any(1), torch.inf)


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Return the seconds of processor and wall clock that the work takes, and its result, which lies on the CPU."""
    started = time.process_time(), time.perf_counter()
    result = work()
    return (time.process_time() - started[0], time.perf_counter() - started[1]), result


def check_agreement(expected: Tensor, found: Tensor, relevant: Tensor) -> None:
    """Raise if two procedures disagree about the scores of texts for images, or the rank of the best right one."""
    allowed = TOLERANCE * float(expected.std())
    difference = float((expected - found).abs().max())
    assert difference <= allowed, f"scores differ by {difference:.2g}, expected at most {allowed:.2g}"
    best = expected.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    tied = (((expected - best).abs() <= 2 * allowed) & ~relevant).any(1)
    moved = ranks_of_best_match(expected, relevant) != ranks_of_best_match(found, relevant)
    assert not (moved & ~tied).any(), "ranks differ where no scores are tied"


def report(arguments: argparse.Namespace, figures: dict[str, Any]) -> str:
    """Lay the figures out."""
    n, sampled, seconds = figures["pairs"], figures["baseline_images"], figures["seconds"]
    extrapolated = "" if sampled == n else f", extrapolated from {sampled} images"
    recall, two = (
        " and ".join(f"{100 * value:.1f}" for value in figures[name].values())
        for name in ("recall@10", "two_stage_recall@10")
    )
    lines = [
        f"{n} × {n} pairs, {arguments.model or f'{arguments.preset}, random weights'}, {arguments.precision}, "
        f"{arguments.device}, {torch.get_num_threads()} threads; texts of {figures['mean_text_length']:.0f} tokens on "
        f"average, {arguments.max_text_length} at most",
        f"{'baseline':<14}{seconds['baseline']:>10.1f} s{extrapolated}",
        f"{'encoded once':<14}{seconds['encoded once']:>10.1f} s  {figures['ratio']:.2f} × faster, "
        f"{100 * figures['equal_ranks']:.1f} % of ranks equal; R@10 text to image and back {recall}",
        f"{'two stages':<14}{seconds['two stages']:>10.1f} s  {figures['two_stage_ratio']:.2f} × faster again, "
        f"k = {arguments.k}; R@10 {two}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
