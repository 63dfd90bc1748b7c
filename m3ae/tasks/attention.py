"""Where in the image each word of a text looks: the last layer's cross-attention, drawn over the image.

Only the first token's row of that layer reaches a head of the model; what the words have read in the layers before
reaches it through self-attention. A map shows what was read, not why an answer was given.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m3ae.data.collate import WORD, word_ids
from m3ae.models.modeling import STREAMS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEProcessor

POOLED = "(pooled)"
COLUMNS = 6
PANEL = 1.8  # inches
CONTRAST = 2.0  # the colours span at least from an even share of attention to this many times as much


class WordAttention(NamedTuple):
    """Attention maps of a text over an image.

    Attributes:
        words: `POOLED` for the first token, which the heads read, then the words of the text without punctuation.
        maps: (W, side, side) attention to each patch, mean over heads and over the tokens of a word; 1 is its share if
            all were equal.
    """

    words: list[str]
    maps: Tensor


@torch.no_grad()
def word_attention(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, image: Image.Image, text: str
) -> WordAttention:
    """Compute with what weights the words of a text attend to an image in the last layer.

    Args:
        model: Any M3AE model, in evaluation mode.
        processor: Of that model, with a fast tokenizer.
        image: Any size.
        text: Cut to what the tokenizer allows; words that are cut off have no map.
    """
    trunk = model.base_model
    assert isinstance(trunk, M3AEModel)
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    encoded = processor.tokenizer(
        text, truncation=True, return_offsets_mapping=True, return_special_tokens_mask=True, return_tensors="pt"
    )
    streams = trunk.encode(pixels, encoded["input_ids"].to(model.device))
    weights = trunk.fusion.cross_attention({name: streams[name] for name in STREAMS}, "text")[0].float().mean(0).cpu()
    relative = weights * weights.shape[-1]  # (L, 1 + N)
    numbers = word_ids(text, encoded["offset_mapping"][0, :, 0].numpy())
    numbers[encoded["special_tokens_mask"][0].bool()] = -1
    words = [(POOLED, relative[0])]
    for number, match in enumerate(WORD.finditer(text)):
        own = relative[numbers == number]
        if match.group()[0].isalnum() and len(own):
            words.append((match.group(), own.mean(0)))
    side = math.isqrt(relative.shape[1] - 1)
    maps = torch.stack([row[1:] for _, row in words]).view(-1, side, side)
    return WordAttention([word for word, _ in words], maps)


def plot_attention(
    path: Path, model: M3AEPreTrainedModel, processor: M3AEProcessor, image: Image.Image, text: str, note: str = ""
) -> None:
    """Draw an image, and over it the attention of each word of a text that exceeds an even share, as a PNG.

    Args:
        path: Of the PNG.
        model: See `word_attention`.
        processor: See `word_attention`.
        image: See `word_attention`.
        text: See `word_attention`.
        note: A line below the text, for instance the answer.
    """
    words, maps = word_attention(model, processor, image, text)
    seen = processor.image_processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    picture = seen.permute(1, 2, 0).numpy()
    columns = min(COLUMNS, 1 + len(words))
    rows = math.ceil((1 + len(words)) / columns)
    wrap = textwrap.TextWrapper(16 * columns, max_lines=3, placeholder=" …")
    title = "\n".join([*wrap.wrap(text), *wrap.wrap(note)])
    figure = Figure(
        figsize=(PANEL * columns + 0.9, 1.15 * PANEL * rows + 0.25 * title.count("\n") + 0.5), layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    top = max(CONTRAST, float(maps.max()))
    _draw(panels[0], "image", picture)
    for panel, word, own in zip(panels[1:], words, maps.numpy(), strict=False):
        heat = _draw(panel, word, picture, own, top)
    for panel in panels[1 + len(words) :]:
        panel.set_axis_off()
    bar = figure.colorbar(heat, ax=list(panels), fraction=0.03, pad=0.02, shrink=0.85, aspect=12 * rows)
    bar.set_label("attention, times an even share", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=130)


def _draw(
    axes: Axes, title: str, picture: NDArray[np.float32], heat: NDArray[np.float32] | None = None, top: float = 1.0
) -> AxesImage:
    """Draw the image, covered the more the further `heat` (side, side) is above 1, fully where it is `top`."""
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_axis_off()
    shown = axes.imshow(picture)
    if heat is None:
        return shown
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(heat)[None, None], picture.shape[:2], mode="bilinear", align_corners=False
    )[0, 0].numpy()
    return axes.imshow(smooth, cmap="plasma", vmin=1, vmax=top, alpha=((smooth - 1) / (top - 1)).clip(0, 1) ** 0.5)
