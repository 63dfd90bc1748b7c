"""MultiVae's own models for `polymnist.py`, with the options of its PolyMNIST examples: `pip install multivae`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from multimodal_vae.classifiers import affordable
from multimodal_vae.polymnist import VIEWS, Rows
from multivae.data.datasets import MultimodalBaseDataset
from multivae.models import MVTCAE, MMVAEPlus, MMVAEPlusConfig, MoPoE, MoPoEConfig, MVTCAEConfig
from multivae.models.base import BaseAEConfig
from multivae.models.nn.mmnist import DecoderConvMMNIST, EncoderConvMMNIST_adapted, EncoderConvMMNIST_multilatents
from multivae.samplers import GaussianMixtureSampler, GaussianMixtureSamplerConfig
from multivae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor

PRIVATE = 32  # dimensions of each view in MMVAE+


def build(name: str, size: int) -> Any:
    """Return a model with MultiVae's convolutional networks."""
    shapes = dict.fromkeys(VIEWS, (3, 28, 28))
    common: dict[str, Any] = {"n_modalities": 5, "input_dims": shapes}
    common |= {"decoders_dist": dict.fromkeys(VIEWS, "laplace")}
    common |= {"decoder_dist_params": {view: {"scale": 0.75} for view in VIEWS}}
    if name == "mmvae+":
        size = min(size, 32)
        own = BaseAEConfig(input_dim=(3, 28, 28), latent_dim=size, style_dim=PRIVATE)
        whole = BaseAEConfig(input_dim=(3, 28, 28), latent_dim=size + PRIVATE)
        config = MMVAEPlusConfig(
            latent_dim=size, modalities_specific_dim=PRIVATE, K=1, beta=2.5, learn_modality_prior=True, **common
        )
        encoders = {view: EncoderConvMMNIST_multilatents(own) for view in VIEWS}
        return MMVAEPlus(config, encoders, {view: DecoderConvMMNIST(whole) for view in VIEWS})
    own = BaseAEConfig(input_dim=(3, 28, 28), latent_dim=size)
    encoders = {view: EncoderConvMMNIST_adapted(own) for view in VIEWS}
    decoders = {view: DecoderConvMMNIST(own) for view in VIEWS}
    if name == "mvtcae":
        return MVTCAE(MVTCAEConfig(latent_dim=size, alpha=5 / 6, beta=2.5, **common), encoders, decoders)
    return MoPoE(MoPoEConfig(latent_dim=size, beta=2.5, **common), encoders, decoders)


class MultiVae:
    """A trained model of MultiVae."""

    def __init__(self, model: Any, fitted: Any) -> None:
        self.model, self.fitted = model.eval(), fitted

    def given(self, rows: Rows, subset: Sequence[str]) -> dict[str, Tensor]:
        """Return images of all views from some views of the rows."""
        return dict(self.model.predict(as_data(rows), cond_mod=list(subset)).items())

    def latents(self, rows: Rows, subset: Sequence[str]) -> Tensor:
        """Return the mean (N, D) of z given some views."""
        with torch.no_grad():
            encoded = self.model.encode(as_data(rows), cond_mod=list(subset), return_mean=True)
        return torch.as_tensor(encoded.z)

    def sampled(self, count: int, *, fitted: bool) -> dict[str, Tensor]:
        """Return images of all views of samples of a prior."""
        if fitted:
            drawn = self.fitted.sample(count)
        else:
            with torch.no_grad():
                drawn = self.model.generate_from_prior(count)
        if isinstance(self.model, MMVAEPlus) and not fitted:  # it samples the shared and one private latent
            size = self.model.latent_dim
            drawn.modalities_z = dict.fromkeys(VIEWS, drawn.z[:, size:])
            drawn.z, drawn.one_latent_space = drawn.z[:, :size], False
        return dict(self.model.decode(drawn).items())


def as_data(rows: Rows) -> MultimodalBaseDataset:
    """Return rows as MultiVae takes them."""
    return MultimodalBaseDataset({view: torch.from_numpy(rows.views[view]).float() / 255 for view in VIEWS})


def train(rows: Rows, name: str, size: int, output: Path, minutes: float, seed: int) -> tuple[MultiVae, float]:
    """Return a model and the processor minutes of its training, to the nearest epoch."""

    def run(part: Rows, epochs: int) -> Any:
        torch.manual_seed(seed)
        model = build(name, size)
        with tempfile.TemporaryDirectory() as folder:
            config = BaseTrainerConfig(
                output_dir=folder, num_epochs=epochs, learning_rate=1e-3, per_device_train_batch_size=128, seed=seed
            )
            BaseTrainer(model, as_data(part), training_config=config).train()
        return model

    few = rows.part(slice(0, 1280))
    steps = 10  # an epoch of these rows
    units, spent = affordable(lambda epochs: run(few, epochs), minutes, 1, 3)
    epochs = max(1, round(units * steps * 128 / len(rows.digits)))
    model = run(rows, epochs)
    sampler = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=10))
    sampler.fit(as_data(rows.part(slice(0, 10_000))))
    return MultiVae(model, sampler), spent * epochs * len(rows.digits) / (units * steps * 128)
