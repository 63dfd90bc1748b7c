from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties, fontManager, get_font
from PIL import Image
from sklearn.metrics import roc_auc_score

from m3ae import M3AEConfig
from m3ae.figures import (
    BLUE,
    Strip,
    draw_losses,
    draw_modalities,
    draw_reconstructions,
    draw_retrieval,
    draw_roc,
    new_figure,
    render,
    save_figure,
)
from m3ae.models.modalities import KINDS, configure

PICTURES = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)


def test_each_label_has_a_panel_with_its_area():
    draw = np.random.default_rng(1)
    scores, truth = draw.random((40, 2)), draw.integers(0, 2, (40, 2)).astype(float)
    truth[:10, 0], truth[:, 1] = np.nan, 0
    first, second = (panel.get_title() for panel in draw_roc(scores, truth, ["mass", "edema"]).axes)
    known = truth[10:, 0]
    assert first == f"mass\n{roc_auc_score(known, scores[10:, 0]):.3f}, {int(known.sum())} of 30"
    assert second == "edema", "one class only"


def test_what_is_right_is_framed():
    figure = draw_retrieval([Strip("a query for $1", list(PICTURES), ["1. 0.9", "2. 0.1"], [1])])
    colours = [{to_hex(spine.get_edgecolor()).upper() for spine in panel.spines.values()} for panel in figure.axes]
    assert BLUE not in colours[1] and colours[2] == {BLUE}
    assert render(figure).width > 300


def test_the_error_has_one_scale_for_all_samples_and_none_where_nothing_was_hidden():
    errors = np.array([[[0.2, np.nan], [0.3, 0.5]], [[0.1, np.nan], [np.nan, np.nan]]], dtype=np.float32)
    figure = draw_reconstructions(PICTURES, PICTURES, PICTURES, errors, ["a text", None], "half of it")
    maps = [panel.images[1] for panel in figure.axes if len(panel.images) == 2]
    assert [image.get_clim() for image in maps] == [(0, 0.5)] * 2
    assert [int(image.get_array().mask.sum()) for image in maps] == [1, 3]
    alone = draw_reconstructions(PICTURES[:1], PICTURES[:1], PICTURES[:1], errors[:1] * np.nan, ["a text"])
    assert alone.get_figwidth() > alone.get_figheight() and figure.get_figwidth() < figure.get_figheight()
    assert render(alone).width > render(alone).height


def test_a_long_text_without_blanks_is_shown_in_part():
    text = "右肺下叶见斑片状密度增高影" * 20
    errors = np.zeros((2, 2, 2), np.float32)
    figure = draw_reconstructions(PICTURES, PICTURES, PICTURES, errors, [text, "short"])
    shown = [panel.get_xlabel().replace("\n", "") for panel in figure.axes if panel.get_xlabel()]
    assert shown == [f"{text[:129]}…", "short"]


def test_modalities_of_every_kind(tmp_path: Path):
    label = {"kind": "label", "labels": ["a", "b"]}
    options = {
        "glyph": {"kind": "image", "encoder": "mlp", "shape": [1, 6, 6]},
        "speech": {"kind": "sequence", "shape": [4, 3]},
        "vector": {"kind": "vector", "shape": [3]},
        "label": label,
        "labels": {**label, "kind": "labels"},
        "text": {"kind": "text"},
    }
    model = M3AEConfig.named("tiny")
    modalities = {name: KINDS[own["kind"]](name, configure(name, own), model) for name, own in options.items()}
    rows = {
        "glyph": [Image.fromarray(np.zeros((6, 6), np.uint8)), None],
        "speech": [np.ones((4, 3))],
        "vector": [np.ones(3)],
        "label": ["b", {"a": 0.7, "b": 0.3}],
        "labels": [["a", "b"], {"a": 0.7, "b": 0.3}],
        "text": ["$"],
    }
    figure = draw_modalities(rows, modalities, ["only"])
    written = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert written == ["b", "a", "a, b", "a", "$"]
    path = save_figure(figure, tmp_path / "new" / "m.png")
    with Image.open(path) as picture:
        assert picture.height > picture.width


@pytest.mark.parametrize("lowest", [0.5, -0.5])
def test_losses_are_drawn_for_training_and_validation(lowest):
    records = [{"step": 1, "training/loss": 2.0}, {"step": 2, "training/loss": lowest, "validation/loss": 1.0}]
    (panel,) = draw_losses(records).axes
    assert [line.get_label() for line in panel.lines] == ["training", "validation"]
    assert panel.get_yscale() == ("log" if lowest > 0 else "linear")
    np.testing.assert_array_equal(panel.lines[0].get_xydata(), [[1, 2.0], [2, lowest]])


def test_letters_come_from_any_installed_font_and_missing_ones_cause_no_warning(tmp_path: Path) -> None:
    usual, other = (set(get_font(fontManager.findfont(name)).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral"))
    rare = chr(min(code for code in other - usual if chr(code).isprintable()))
    figure = new_figure(2, 2)
    texts = [figure.text(0.1, 0.1, text) for text in ("plain", f"rare {rare}", "肺 \U000e0fff")]
    save_figure(figure, tmp_path / "a.png")
    families = [text.get_fontfamily() for text in texts]
    assert len(families[0]) == 1 and len(families[1]) == 2
    assert ord(rare) in get_font(fontManager.findfont(FontProperties(family=families[1][1:]))).get_charmap()
    render(figure)
