"""The scripts for released checkpoints, as users start them."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m3ae import M3AEForQuestionAnswering
from tests.models.tiny import tiny_of, tiny_pairs
from tests.transfer.released import released_by_others, save

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIZES = {"image_config": {"hidden_size": 64, "num_attention_heads": 1}}  # CLIP's heads are 64 wide


@pytest.fixture
def run(monkeypatch, capsys):
    def start(script: str, **options: object) -> tuple[int, str, str]:
        words = [
            word for name, value in options.items() for word in (f"--{name}", *([] if value is True else [value]))
        ]
        monkeypatch.setattr("sys.argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return start


@pytest.fixture
def model() -> M3AEForQuestionAnswering:
    return tiny_of(M3AEForQuestionAnswering, **SIZES)


def test_there_and_back(run, model, tmp_path) -> None:
    path = save(tmp_path, released_by_others(model))
    status, printed, _ = run("convert_checkpoint.py", checkpoint=path, output=tmp_path / "ours")
    assert status == 0 and "M3AEForQuestionAnswering" in printed and "none unmapped" in printed
    back = tmp_path / "back.ckpt"
    assert run("convert_checkpoint.py", checkpoint=tmp_path / "ours", output=back, reverse=True)[0] == 0
    state = torch.load(back, weights_only=True)["state_dict"]
    original = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, original[name]) for name, value in state.items())


def test_errors_are_one_message(run, tmp_path) -> None:
    status, _, error = run("convert_checkpoint.py", checkpoint=tmp_path / "none.ckpt", output=tmp_path / "ours")
    assert status == 2 and error.count("\n") == 1 and "none.ckpt is missing" in error
    status, _, error = run("convert_checkpoint.py", checkpoint=tmp_path, output="x", reverse=True, answers="a.txt")
    assert status == 2 and "--reverse writes the whole model as it is and takes no --answers" in error
    status, _, error = run("check_parity.py", checkpoint=tmp_path / "none.ckpt", expected="x")
    assert status == 2 and "none.ckpt is missing" in error


@pytest.mark.parametrize(("error", "status"), [(0.0, 0), (1e-3, 1)])
def test_check_parity_has_an_exit_status(run, model, tmp_path, error: float, status: int) -> None:
    path = save(tmp_path, released_by_others(model))
    with torch.no_grad():
        logits = model(**tiny_pairs()).logits + error
    stored = {f"inputs.{name}": value for name, value in tiny_pairs().items()} | {"vqa.logits": logits}
    save_file(stored, tmp_path / "expected.safetensors")
    ended, printed, _ = run("check_parity.py", checkpoint=path, expected=tmp_path / "expected.safetensors")
    assert ended == status and ("FAILED" in printed) == bool(status)
    assert printed.splitlines()[-1] == f"{1 - status} of 1 tensors within tolerance"
