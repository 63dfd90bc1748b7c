"""The benchmark of small nodules, on phantoms of 32 pixels."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import small_findings
from multimodal_vae.classifiers import Classifier
from numpy.typing import NDArray

from m3ae.data.prepare import prepare
from tests.models.tiny_latent import IMAGE, latent_model


def test_real_images_and_drawn_ones_are_read_by_one_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("phantom", tmp_path / "data", factors="independent", num_studies=200, image_size=32)
    latent_model({"frontal": IMAGE | {"shape": [1, 32, 32]}}).save_pretrained(tmp_path / "model")
    command = ["small_findings.py", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data")]
    monkeypatch.setattr("sys.argv", [*command, "--epochs", "1", "--json", str(tmp_path / "figures.json")])
    small_findings.main()
    table = capsys.readouterr().out
    assert "| | large nodules | moderate nodules | small nodules | all findings |" in table
    assert "| reconstructions, z sampled |" in table and (tmp_path / "figures.json").exists()


def test_shares_are_of_nodules_of_each_size() -> None:
    class Reader:
        def read(self, images: NDArray[np.integer]) -> tuple[NDArray[np.integer], None]:
            return images, None

    truth = np.array([[0, 0], [0, 1], [0, 2], [0, 2], [1, 2]])  # nodules, two of them small, and a small opacity
    found = np.array([[0], [1], [1], [0], [0]])
    figures = small_findings.recognised(cast(Classifier, Reader()), found, truth)
    expected = {"large nodules": 1.0, "moderate nodules": 0.0, "small nodules": 0.5, "all findings": 0.4}
    assert figures == pytest.approx(expected)
