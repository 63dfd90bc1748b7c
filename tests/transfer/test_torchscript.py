import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from m3ae.transfer.checkpoints import _tensor, is_torchscript, load_checkpoint, read_torchscript

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


def nested(depth: int) -> bytes:
    """A module whose two children are one module whose two children …"""
    head = b"\x80\x02" + b"c__torch__\nM\n)\x81}(X\x01\x00\x00\x00tK\x01ub"
    for _ in range(depth):
        head += b"q\x00" + b"0c__torch__\nM\n)\x81}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub"
    return head + b"."


def test_modules_that_share_children_end(archive: Path) -> None:
    assert read_torchscript(replace_pickle(archive, nested(3))) == {}
    with pytest.raises(ValueError, match="more than 100,000 modules"):
        read_torchscript(replace_pickle(archive, nested(40)))


def test_what_unpacks_to_more_than_its_file_is_refused(archive: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    torch.save({"weight": torch.zeros(9)}, tmp_path / "state.pt")
    for source, read in ((archive, read_torchscript), (tmp_path / "state.pt", load_checkpoint)):
        with zipfile.ZipFile(source) as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
            for name in plain.namelist():
                target.writestr(name, plain.read(name))
            target.writestr("data/9", bytes(10**7))
        with pytest.raises(ValueError, match=r"bomb\.pt is a compressed archive, which PyTorch does not write"):
            read(bomb)


def test_a_view_is_no_larger_than_its_numbers() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"asks for a tensor of \(1000000, 1000000\) from 1 numbers"):
        _tensor(torch.zeros(1), 0, (10**6, 10**6), (0, 0))
