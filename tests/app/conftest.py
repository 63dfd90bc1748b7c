"""Tiny models of every kind, and prepared sets for them."""

from pathlib import Path

import pytest

from m3ae import M3AEForClassification, M3AEForPreTraining, M3AEForQuestionAnswering, M3AEForReportGeneration
from m3ae.app.session import Session, open_session
from tests.models.tiny_latent import latent_model
from tests.tasks.tiny_finetuning import save_model, write_splits

TEXTS = ["large nodule", "no finding"]
MODALITIES = {
    "image": {"kind": "image", "encoder": "mlp", "shape": [1, 6, 6], "hidden_size": 16, "num_layers": 1},
    "label": {"kind": "label", "labels": ["a", "b"], "hidden_size": 8, "num_layers": 1},
}


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, `masked` in a run with metrics, and the sets `data` and `more`."""
    path = tmp_path_factory.mktemp("app")
    save_model(path / "masked" / "model", M3AEForPreTraining, TEXTS, itc_weight=1.0)
    (path / "masked" / "metrics.jsonl").write_text('{"step": 1, "training/loss": 2.0, "validation/loss": 1.5}\n')
    save_model(path / "vqa", M3AEForQuestionAnswering, TEXTS, id2label={0: "yes", 1: "no"})
    options = {"problem_type": "multi_label_classification", "decision_thresholds": [0.0, 1.0]}
    save_model(path / "classes", M3AEForClassification, TEXTS, id2label={0: "mass", 1: "fluid"}, **options)
    save_model(path / "reports", M3AEForReportGeneration, TEXTS)
    latent_model(MODALITIES).save_pretrained(path / "latent")
    rows = [
        {"id": f"row-{n}", "image": 40 + 90 * n, "text": [text], "label": "ab"[n], "question": "Is it large?"}
        for n, text in enumerate(TEXTS)
    ]
    write_splits(path / "data", {"test": rows})
    write_splits(path / "more", {"test": [row | {"id": f"{row['id']}-{n}"} for row in rows for n in range(2)]})
    return path


@pytest.fixture
def session(folder: Path) -> Session:
    """All of them."""
    models = [str(folder / name) for name in ("masked", "vqa", "classes", "reports", "latent")]
    return open_session(models, [folder / "data", folder / "more"], "test")
