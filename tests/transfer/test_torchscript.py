import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from m3ae.transfer.checkpoints import is_torchscript, read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.shared = self.inner[0].weight
        self.register_buffer("transposed", torch.arange(6.0).half().reshape(2, 3).T)
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    return tmp_path / "small.pt"


def replace_pickle(archive: Path, data: bytes) -> Path:
    changed = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("/data.pkl") else source.read(name))
    return changed


def test_the_tensors_are_those_of_the_module(archive: Path) -> None:
    expected = torch.jit.load(archive).state_dict()
    read = read_torchscript(archive)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in expected.items())


def test_only_scripted_archives_are_taken_for_such(archive: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("text")
    assert is_torchscript(archive)
    assert not is_torchscript(tmp_path / "state.pt") and not is_torchscript(tmp_path / "text.pt")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_in_an_archive_is_not_run(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changed = replace_pickle(archive, pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(
        ValueError, match=r"changed.pt is a TorchScript .* asks to build posix.mkdir. Nothing of it was run"
    ):
        read_torchscript(changed)
    assert not Path("ran").exists()


@pytest.mark.parametrize("data", [b"", b"nonsense", pickle.dumps([1, 2])])
def test_a_damaged_archive_is_explained(archive: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match="whose parameters cannot be read"):
        read_torchscript(replace_pickle(archive, data))
