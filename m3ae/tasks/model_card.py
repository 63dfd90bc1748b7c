"""The README.md of a saved model."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from m3ae.data.prepared import Manifest
from m3ae.training.config import RunConfig

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: feature-extraction
tags: [m3ae, medical, multimodal, masked-autoencoder]
---

# {title}

A masked multimodal autoencoder (M3AE) of {parameters:.1f} M parameters: a ViT over {image_size} px images and a
RoBERTa, fused by {layers} co-attention layers; pre-trained by masked-image modelling, masked-language modelling and
image-text matching{contrast} ({schedule} schedule, {steps} steps of {batch} pairs per process).

```python
import m3ae  # registers the model; must come before AutoModel
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}")
features = model(**processor(images=image, text="Clear lungs.", return_tensors="pt"))
```

Either `images` or `text` may be left out.

## Data

Prepared from `{source}`: {counts}. The licence of that data applies to what is derived from it.

## Metrics

`shuffled` gives each text another sample's image: the difference is what the model reads across modalities.

{table}

Not a medical device: not for diagnosis or treatment.
"""


def write_model_card(
    folder: Path, config: RunConfig, model: PreTrainedModel, manifest: Manifest, metrics: dict[str, float]
) -> None:
    """Write `README.md` into a saved model's folder."""
    training = config.training
    card = _TEMPLATE.format(
        title=f"M3AE, {config.output_dir.name}",
        parameters=model.num_parameters() / 1e6,
        image_size=model.config.image_config.image_size,
        layers=model.config.num_hidden_layers,
        contrast=", with image-text contrast" if model.config.itc_weight else "",
        schedule=model.config.schedule,
        steps=training.max_steps,
        batch=training.batch_size * training.gradient_accumulation_steps,
        folder=folder.name,
        source=manifest.source,
        counts=", ".join(f"{split} {info.rows:,}" for split, info in manifest.splits.items()),
        table=metrics_table(metrics),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def metrics_table(metrics: dict[str, float]) -> str:
    """Lay out `<split>/<metric>` and `<split>/shuffled_<metric>` as a Markdown table, own beside shuffled."""
    own = {name: value for name, value in metrics.items() if "/shuffled_" not in name}
    if not own:
        return "Not measured yet."
    lines = ["| split | metric | own image | shuffled image |", "|---|---|---:|---:|"]
    for name, value in own.items():
        split, _, metric = name.partition("/")
        shuffled = metrics.get(f"{split}/shuffled_{metric}")
        lines.append(f"| {split} | {metric} | {value:.4g} | {'' if shuffled is None else f'{shuffled:.4g}'} |")
    return "\n".join(lines)
