from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from m3ae import M3AEForClassification
from m3ae.app import build
from m3ae.app.session import Session, open_session
from tests.tasks.tiny_finetuning import save_model

pytestmark = [  # gradio leaves sockets and event loops open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def tabs(session: Session) -> list[str]:
    """The names of the tabs in order."""
    return [block.label for block in build(session).blocks.values() if type(block).__name__ == "Tab"]


def test_each_model_brings_its_tabs(session: Session, folder: Path) -> None:
    assert tabs(session) == ["Reconstruct", "Ask", "Search", "Generate", "Data", "Run"]
    assert tabs(open_session([str(folder / "vqa")], [], "test")) == ["Ask"]


def test_examples_come_from_the_set(session: Session) -> None:
    assert [(case.text, case.question) for case in session.examples(questions=True)] == [
        ("large nodule", "Is it large?"),
        ("no finding", "Is it large?"),
    ]
    assert session.examples()[1].image.getpixel((0, 0)) == (130, 130, 130)


def test_what_cannot_be_shown(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as is another one: give one of each"):
        open_session([str(folder / "vqa")] * 2, [], "test")
    save_model(tmp_path / "classes", M3AEForClassification, ["a"], id2label={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="M3AEForClassification, for which the app has no tab"):
        open_session([str(tmp_path / "classes")], [], "test")
    with pytest.raises(ValueError, match="the latent model needs a prepared set with image, label, got none"):
        build(open_session([str(folder / "latent")], [], "test"))
