"""Measure samples, and search them, in several processes, as torchrun starts them: run_gather.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from PIL import Image

from m3ae import M3AEForImageTextRetrieval
from m3ae.data.collate import TrunkCollator
from m3ae.data.samples import Sample
from m3ae.data.tokenizer import train_tokenizer
from m3ae.metrics import MultiLabelMetrics, VQAAccuracy, gather_rows
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.tasks.gallery import Gallery
from tests.models.tiny import tiny_of

SIZE = 7  # not a multiple of two: one process has a sample less


def questions() -> list[dict[str, object]]:
    return [
        {
            "predictions": "yes" if index % 3 else "no",
            "references": ["yes"],
            "answer_types": "closed" if index % 2 else "open",
            "question_types": "",
            "scores": torch.tensor([index * 5 % SIZE, index / 3]),
            "labels": torch.tensor([index % 2, index % 3 == 0]).float(),
        }
        for index in range(SIZE)
    ]


@torch.no_grad()
def search() -> list[list[list[int]]]:
    """Find three of five images and of six texts each for the other in two stages, the best first."""
    texts = ["clear", "large effusion", "a nodule", "clear", "fluid", "an old fracture"]
    model = tiny_of(M3AEForImageTextRetrieval, itc_weight=1.0, text_config={"vocab_size": 270})
    images = [Image.new("L", (32, 32), 50 * i) for i in range(5)]
    samples = [Sample(str(i), {"image": image, "text": None}) for i, image in enumerate(images)]
    collator = TrunkCollator(trunk_modalities(model.config), BatchOptions(train_tokenizer(texts, 270), 16))
    gallery = Gallery(model.m3ae, texts, range(5), samples.__getitem__, collator, Accelerator(cpu=True), batch_size=2)
    _, ranked = gallery.search(model.score, model.itc_head, 3)
    return [[[number for number, _ in best] for best in found.best(3)] for found in ranked]


def measure(folder: Path) -> dict[str, object]:
    state = PartialState(cpu=True)
    own = questions()[state.process_index :: state.num_processes]
    rows = gather_rows(own)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    scores, labels = columns.pop("scores"), columns.pop("labels")
    exchanged = VQAAccuracy(
        num_process=state.num_processes, process_id=state.process_index, experiment_id="test", cache_dir=str(folder)
    )
    exchanged.add_batch(**{name: [row[name] for row in own] for name in columns})
    return {
        "scores": torch.stack(scores).tolist(),
        "answers": VQAAccuracy().compute(**columns),
        "found": search(),
        "labels": MultiLabelMetrics().compute(predictions=scores, references=labels),
        "exchanged": exchanged.compute(),  # None but for the first process
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = measure(target)
    (target / f"{PartialState().process_index}.json").write_text(json.dumps(found))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
