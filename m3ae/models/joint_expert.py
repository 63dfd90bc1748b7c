"""The expert of all present modalities together, which reads what the trunk fuses.

Shapes: M experts, B batch, S tokens, W width of an expert's features, D shared latent dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from m3ae.models.fusion import Fusion, Stream, joined_views
from m3ae.models.gaussians import Gaussian
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_networks import Expert, Vectors, mlp, read_gaussian


class JointExpert(nn.Module):
    """q(z | all present modalities) of their features side by side, a learned vector where a modality is missing.

    The features of several streams of the trunk are pooled from fused tokens, the others are those of the experts.

    Args:
        experts: Name → expert of the modality alone.
        streams: Name → stream of the trunk that a modality belongs to, of those that are fused.
        latent: The latent head's configuration.
    """

    def __init__(self, experts: Mapping[str, Expert], streams: Mapping[str, str], latent: LatentConfig) -> None:
        super().__init__()
        self.streams, self.initial_std = streams, latent.initial_std
        widths = {name: expert.width for name, expert in experts.items()}
        self.missing = Vectors({name: [width] for name, width in widths.items()}, std=0.0)
        self.pools = nn.ModuleDict({name: copy.deepcopy(experts[name].pool) for name in streams})
        self.output = mlp(sum(widths.values()), max(widths.values()), 1, 2 * latent.size)

    def forward(
        self,
        inputs: Mapping[str, Stream | Tensor],
        features: Mapping[str, Tensor],
        fusion: nn.Module | None,
        present: Tensor,
    ) -> Gaussian:
        """Return the Gaussian (B, D).

        Args:
            inputs: Name → what the expert of each modality in the batch reads.
            features: Name → what that expert makes of it, (B, W).
            fusion: The trunk's fusion, for several streams.
            present: (M, B) bool; rows of absent modalities are never read.
        """
        rows = dict(zip(self.missing, present, strict=True))
        features = {**features, **self._fused_features(inputs, fusion, rows)}
        read = [
            torch.where(rows[name][:, None], features[name], vector)
            if name in features
            else vector.expand(present.shape[1], -1)
            for name, vector in self.missing.items()
        ]
        return read_gaussian(self.output(torch.cat(read, -1)), self.initial_std)

    def _fused_features(
        self, inputs: Mapping[str, Stream | Tensor], fusion: nn.Module | None, rows: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        streams = {name: inputs[name] for name in self.streams if name in inputs}
        separate = {
            name: value._replace(present=rows[name]) for name, value in streams.items() if type(value) is Stream
        }
        views: dict[str, list[str]] = {}
        for name in separate:
            views.setdefault(self.streams[name], []).append(name)
        if not views:
            return {}
        assert isinstance(fusion, Fusion)
        whole = {stream: joined_views([separate[name] for name in names]) for stream, names in views.items()}
        fused = fusion(whole)[-1]
        return {
            name: self.pools[name](separate[name]._replace(tokens=tokens))
            for stream, names in views.items()
            for name, tokens in zip(names, fused[stream].chunk(len(names), 1), strict=True)
        }
