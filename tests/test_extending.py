"""The examples of docs/extending.md run as they are written, and what they have trained loads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import m3ae
from m3ae.models.modalities import KINDS
from m3ae.models.objectives import OBJECTIVES

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
TABLES = ("encoders", "decoders", "likelihoods")


@pytest.fixture
def tables() -> Iterator[None]:
    """What is registered in a test is forgotten after it."""
    kinds, objectives = dict(KINDS), dict(OBJECTIVES)
    kept = {kind: {table: dict(getattr(own, table)) for table in TABLES} for kind, own in KINDS.items()}
    yield
    for table, entries in ((KINDS, kinds), (OBJECTIVES, objectives)):
        table.clear()
        table.update(entries)
    for kind, own in kept.items():
        for table, entries in own.items():
            setattr(KINDS[kind], table, entries)


def test_there_is_an_example_of_each_part() -> None:
    assert set(EXAMPLES) == {"kind", "encoder", "decoder", "objective"}
    assert all(len(code.splitlines()) <= 40 for code in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLES[name], {"__name__": name})
    (folder,) = (tmp_path / "runs").iterdir()
    loaded = m3ae.M3AEForGeneration.from_pretrained(folder / "model")
    assert (folder / "figures" / "cross_generation.png").is_file() and loaded.latent.modalities
