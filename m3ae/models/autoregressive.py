"""Decoders that read the elements before each one: gated causal convolutions over sequences and images.

A sequence (T, F) is a map of one row, whose columns are its times. An image (C, H, W) is read from left to right and
from top to bottom. The values of one time or pixel are independent of each other, given z and all before.

Shapes: R rows of latents, Z dimensions of z and of the private latent together, D channels, F values of a time or
pixel, H×W size of a map, h and w of a piece of it, P parameters of the density of a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.models.gaussians import dtype_of
from m3ae.models.latent_networks import mlp
from m3ae.models.likelihoods import Likelihood

if TYPE_CHECKING:
    from m3ae.models.modalities.base import Modality

DRAWN_TOGETHER = 256  # rows of latents
COLUMNS, ROWS = 3, 2  # axes of a map
Past = list[Tensor | None]  # of each block: the inputs that its next outputs need


class Pointwise(nn.Conv2d):
    """A linear layer at each element."""

    inputs_per_channel = 1

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)


class CausalConvolution(nn.Conv2d):
    """A convolution of each element with the one that stands `dilation` before it, and over rows with its neighbours.

    Args:
        channels: Channels of the input; the output has twice as many.
        dilation: Distance of what is convolved.
        axis: `COLUMNS` or `ROWS`.
    """

    def __init__(self, channels: int, dilation: int, axis: int) -> None:
        kernel, padding = ((1, 2), (0, 0)) if axis == COLUMNS else ((2, 3), (0, dilation))
        super().__init__(channels, 2 * channels, kernel, dilation=dilation, padding=padding)
        self.axis, self.reach, self.inputs_per_channel = axis, dilation, kernel[0] * kernel[1]

    def read(self, inputs: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return outputs (R, 2·D, h, w) of inputs (R, D, h, w) that follow the past, 0 if None, and the new past."""
        if past is None:
            past = torch.zeros_like(inputs.narrow(self.axis, 0, 1)).repeat_interleave(self.reach, self.axis)
        window = torch.cat([past, inputs], self.axis)
        return self(window), window.narrow(self.axis, window.shape[self.axis] - self.reach, self.reach)


class GatedBlock(nn.Module):
    """Gates of what stands before in the row, of what stands above, and of z, after van den Oord et al. (2016)."""

    def __init__(self, channels: int, dilation: int, *, has_rows: bool) -> None:
        super().__init__()
        self.before = CausalConvolution(channels, dilation, COLUMNS)
        self.above = CausalConvolution(channels, dilation, ROWS) if has_rows else None
        self.condition = Pointwise(channels, 2 * channels)  # of z
        self.link = Pointwise(channels, 2 * channels) if has_rows else None
        self.output = Pointwise(channels, 2 * channels)  # residual, and skip connection

    def read_above(self, above: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Update what stands above (R, D, h, W), which follows the past."""
        assert self.above is not None
        values, past = self.above.read(above, past)
        return above + _gated(values), past

    def forward(
        self, before: Tensor, above: Tensor | None, condition: Tensor, past: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update what stands before (R, D, h, w), which follows the past; return the update, the skip and the past."""
        values, past = self.before.read(before, past)
        values = values + self.condition(condition)
        if above is not None and self.link is not None:
            values = values + self.link(above)
        residual, skip = self.output(_gated(values)).chunk(2, 1)
        return before + residual, skip, past


class AutoregressiveDecoder(nn.Module):
    """log p(x|z) = Σ_i log p(x_i | x_<i, z), exact: a WaveNet for sequences, a gated PixelCNN for images.

    Stacks of dilations 1, 2, 4 … reach over the whole element ("WaveNet", van den Oord et al. 2016). One stream reads
    the rows above, another one the elements before in the row, so that nothing is in a blind spot ("Conditional image
    generation with PixelCNN decoders", van den Oord et al. 2016). z enters every gate, as one vector for each row and
    one for each column.

    In training, times or pixels are not read with the probability `dropout` of the modality, so that z is read.

    Args:
        modality: The modality: `hidden_size` / 8 channels, `num_layers` stacks.
        input_size: Z.
    """

    def __init__(self, modality: Modality, input_size: int) -> None:
        super().__init__()
        likelihood = modality.build_likelihood()
        assert likelihood is not None
        config, self.is_image = modality.config, len(modality.shape) == 3
        width, count = modality.shape if not self.is_image else (modality.shape[2], modality.shape[0])
        self.count, self.num_parameters, self.dropout = count, likelihood.num_parameters, config.dropout
        self.size = (modality.shape[1] if self.is_image else 1, width)
        channels = max(1, config.hidden_size // 8)
        self.latents = mlp(input_size, config.hidden_size, 1, channels * sum(self.size))
        self.before = Pointwise(count, channels)
        self.above = Pointwise(count, channels) if self.is_image else None
        powers = range(max(1, (max(self.size) - 1).bit_length()))
        self.blocks = nn.ModuleList(
            GatedBlock(channels, 2**power, has_rows=self.is_image)
            for _ in range(config.num_layers)
            for power in powers
        )
        self.predict = nn.Sequential(
            nn.GELU(), Pointwise(channels, channels), nn.GELU(), Pointwise(channels, count * self.num_parameters)
        )

    def forward(self, latents: Tensor, elements: Tensor) -> Tensor:
        """Return the parameters (R, *E[, P]) of elements (B, *E), in turn, at latents (R, Z)."""
        values = self._map(elements.to(dtype_of(self))).repeat(len(latents) // len(elements), 1, 1, 1)
        if self.training and self.dropout:
            values = values * (torch.rand_like(values[:, :1]) >= self.dropout)
        rows, columns = self._condition(latents)
        condition, above = rows + columns, list[Tensor]()
        if self.is_image:
            above, _ = self._read_above(F.pad(values, (0, 0, 1, -1)), condition, self._no_past())
        predicted, _ = self._read(F.pad(values, (1, -1)), above, condition, self._no_past())
        return self._of_elements(predicted)

    @torch.no_grad()
    def draw(self, latents: Tensor, likelihood: Likelihood, generator: torch.Generator | None = None) -> Tensor:
        """Draw an element (R, *E) for each row of latents (R, Z); each value takes one step of each layer."""
        rows = latents.split(DRAWN_TOGETHER)
        return torch.cat([self._draw(some, likelihood, generator) for some in rows])

    def _draw(self, latents: Tensor, likelihood: Likelihood, generator: torch.Generator | None) -> Tensor:
        (rows, columns), (height, width) = self._condition(latents), self.size
        values = latents.new_zeros(len(latents), self.count, height, width)
        nothing = torch.zeros_like(values[..., :1, :1])
        above, past_above = list[Tensor](), self._no_past()
        for row in range(height):
            if self.is_image:
                line = values[:, :, row - 1 : row] if row else torch.zeros_like(values[:, :, :1])
                above, past_above = self._read_above(line, rows[:, :, row : row + 1] + columns, past_above)
            past = self._no_past()
            for column in range(width):
                before = values[:, :, row : row + 1, column - 1 : column] if column else nothing
                condition = rows[:, :, row : row + 1] + columns[..., column : column + 1]
                over = [line[..., column : column + 1] for line in above]
                predicted, past = self._read(before, over, condition, past)
                value = likelihood.sample(self._of_elements(predicted), generator)
                values[:, :, row : row + 1, column : column + 1] = self._map(value)
        return self._elements(values)

    def _no_past(self) -> Past:
        return [None] * len(self.blocks)

    def _condition(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of rows (R, D, H, 1) and of columns (R, D, 1, W)."""
        rows, columns = self.latents(latents).unflatten(-1, (-1, sum(self.size))).split(self.size, -1)
        return rows[..., None], columns[:, :, None]

    def _read_above(self, above: Tensor, condition: Tensor, pasts: Past) -> tuple[list[Tensor], Past]:
        """Return for each block what stands above (R, D, h, W), from the values of the rows before."""
        assert self.above is not None
        stream, streams, following = self.above(above) + condition, list[Tensor](), Past()
        for block, past in zip(self.blocks.children(), pasts, strict=True):
            assert isinstance(block, GatedBlock)
            stream, past = block.read_above(stream, past)
            streams.append(stream)
            following.append(past)
        return streams, following

    def _read(self, before: Tensor, above: list[Tensor], condition: Tensor, pasts: Past) -> tuple[Tensor, Past]:
        """Return parameters (R, F·P, h, w) from the values before in the row, and from what stands above."""
        stream, following = self.before(before), Past()
        total = torch.zeros_like(stream)
        for number, (block, past) in enumerate(zip(self.blocks, pasts, strict=True)):
            stream, skip, past = block(stream, above[number] if above else None, condition, past)
            total = total + skip
            following.append(past)
        return self.predict(total), following

    def _map(self, elements: Tensor) -> Tensor:
        """Lay out elements as maps (R, F, h, w)."""
        return elements if self.is_image else elements.transpose(1, 2)[:, :, None]

    def _elements(self, values: Tensor) -> Tensor:
        """Lay out maps as elements: the inverse of `_map`."""
        return values if self.is_image else values[:, :, 0].transpose(1, 2)

    def _of_elements(self, predicted: Tensor) -> Tensor:
        """Lay out (R, F·P, h, w) as elements, with P behind if it is not 1."""
        split = predicted.unflatten(1, (-1, self.num_parameters)).unbind(2)
        laid_out = [self._elements(values) for values in split]
        return laid_out[0] if len(laid_out) == 1 else torch.stack(laid_out, -1)


def _gated(values: Tensor) -> Tensor:
    content, gate = values.chunk(2, 1)
    return content.tanh() * gate.sigmoid()
