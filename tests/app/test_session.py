from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from m3ae import M3AEModel
from m3ae.app import build
from m3ae.app.search import merge_equal
from m3ae.app.session import Session, open_session
from m3ae.inference import Hit, open_collection
from tests.tasks.tiny_finetuning import save_model

pytestmark = [  # gradio leaves sockets and event loops open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def tabs(session: Session) -> list[str]:
    """The names of the tabs in order."""
    return [block.label for block in build(session).blocks.values() if type(block).__name__ == "Tab"]


def test_each_model_brings_its_tabs(session: Session, folder: Path) -> None:
    assert tabs(session) == ["Reconstruct", "Ask", "Classify", "Report", "Search", "Generate", "Data", "Run"]
    assert tabs(open_session([str(folder / "vqa")], [], "test")) == ["Ask"]


def test_equal_images_are_one(folder: Path) -> None:
    collection = open_collection(folder / "more")
    hits = [Hit(row, 1.0 - row, collection.names[row], [f"text {row}"]) for row in (2, 0, 1, 3)]
    assert [(hit.image, hit.texts) for hit in merge_equal(hits, collection)] == [
        ("row-1-0", ["text 2", "text 3"]),
        ("row-0-0", ["text 0", "text 1"]),
    ]
    assert len(open_session([], [folder / "more"], "test").examples()) == 2


def test_examples_come_from_the_set(session: Session) -> None:
    assert [(case.text, case.question) for case in session.examples(questions=True)] == [
        ("large nodule", "Is it large?"),
        ("no finding", "Is it large?"),
    ]
    assert session.examples()[1].image.getpixel((0, 0)) == (130, 130, 130)


def test_what_cannot_be_shown(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as is another model: give one of each kind"):
        open_session([str(folder / "vqa")] * 2, [], "test")
    save_model(tmp_path / "trunk", M3AEModel, ["a"])
    with pytest.raises(ValueError, match="M3AEModel, for which the app has no tab"):
        open_session([str(tmp_path / "trunk")], [], "test")
    with pytest.raises(ValueError, match="the latent model needs a prepared set with image, label, got none"):
        build(open_session([str(folder / "latent")], [], "test"))
