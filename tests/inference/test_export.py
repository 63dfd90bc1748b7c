"""Exported encoders give what the model gives, whatever the batch and the length."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from m3ae import M3AEForPreTraining, M3AEImageProcessor, M3AEProcessor
from m3ae.cli import cli
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference.export import export_encoders
from tests.models.tiny import tiny_of, tiny_pairs
from tests.models.tiny_latent import latent_model


def test_saved_programs_give_what_the_model_gives(tmp_path: Path) -> None:
    model = tiny_of(M3AEForPreTraining, itc_weight=1.0)
    model.save_pretrained(tmp_path / "model")
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer(["a text"], 270))
    processor.save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(cli, ["export", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    image, text = (torch.export.load(tmp_path / "out" / f"{name}_encoder.pt2").module() for name in ("image", "text"))
    for size in (1, 3):
        pairs = tiny_pairs(size)
        ids, mask = pairs["input_ids"][:, : 12 - size], pairs["attention_mask"][:, : 12 - size]
        with torch.no_grad():
            streams = model.m3ae.encode(pairs["pixel_values"], ids, mask)
            embedded = {name: model.itc_head.embed(name, stream) for name, stream in streams.items()}
        for name, found in {"image": image(pairs["pixel_values"]), "text": text(ids, mask)}.items():
            torch.testing.assert_close(found["tokens"], streams[name].tokens, atol=1e-5, rtol=0)
            torch.testing.assert_close(found["embedding"], embedded[name], atol=1e-5, rtol=0)


def test_a_latent_model_is_refused() -> None:
    with pytest.raises(ValueError, match="got M3AEForGeneration"):
        export_encoders(latent_model())
