"""Measure samples in several processes, as torchrun starts them: run_gather.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from m3ae.metrics import MultiLabelMetrics, VQAAccuracy, gather_rows

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
        "labels": MultiLabelMetrics().compute(predictions=scores, references=labels),
        "exchanged": exchanged.compute(),  # None but for the first process
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = measure(target)
    (target / f"{PartialState().process_index}.json").write_text(json.dumps(found))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
