"""Exported encoders give what the model gives, whatever the batch and the length."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from click.testing import CliRunner

from m3ae import (
    M3AEForClassification,
    M3AEForPreTraining,
    M3AEImageProcessor,
    M3AEProcessor,
)
from m3ae.cli import cli
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference.export import export_programs, save_programs
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.tiny import tiny_of, tiny_pairs
from tests.models.tiny_latent import STUDY, digits_batch, latent_model, study_batch


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
        for name, result in {"image": image(pairs["pixel_values"]), "text": text(ids, mask)}.items():
            torch.testing.assert_close(result["tokens"], streams[name].tokens, atol=1e-5, rtol=0)
            torch.testing.assert_close(result["embedding"], embedded[name], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_programs_of_padded_images_take_their_masks() -> None:
    padded = {"image_config": {"resize": "pad"}}
    model, latent = tiny_of(M3AEForPreTraining, **padded), latent_model(STUDY)
    latent.config.image_config.resize = "pad"
    pairs = tiny_pairs(3)
    mask = torch.ones(3, 32, 32, dtype=torch.long)
    mask[1, :10] = mask[2, :, 20:] = 0
    with torch.no_grad():
        streams = model.m3ae.encode(**pairs, pixel_mask=mask)
        score = export_programs(model)["model"].module()(*pairs.values(), mask)["score"]
        torch.testing.assert_close(score, model.score(streams["text"], streams["image"]), atol=1e-5, rtol=0)
        data: dict[str, Any] = study_batch(3)
        data["frontal"]["pixel_mask"], data["lateral"]["pixel_mask"] = mask, torch.ones_like(mask)
        mean = export_programs(latent)["encoder"].module()(data)["mean"]
        torch.testing.assert_close(mean, latent.infer_latent(data).mean, atol=1e-5, rtol=0)


# The other classes have the heads of these.
@pytest.mark.slow
@pytest.mark.parametrize(("model_class", "name"), [(M3AEForClassification, "logits"), (M3AEForPreTraining, "score")])
def test_programs_of_onnx_give_what_the_model_gives(
    model_class: type[M3AEPreTrainedModel], name: str, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = tiny_of(model_class)
    save_programs(model, tmp_path / "out", "onnx")
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    outputs = [output.name for output in session.get_outputs()]
    for size in (1, 3):
        pairs = {key: value[:, : 12 - size] if value.dim() == 2 else value for key, value in tiny_pairs(size).items()}
        result = session.run(None, {key: value.numpy() for key, value in pairs.items()})
        with torch.no_grad():
            if name == "score":
                streams = model.m3ae.encode(**pairs)
                expected = model.score(streams["text"], streams["image"])
            else:
                expected = model(**pairs)[name]
        position = outputs.index(name) if name in outputs else -1
        torch.testing.assert_close(torch.from_numpy(result[position]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_programs_of_a_latent_model(form: Literal["pt2", "onnx"], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime") if form == "onnx" else None
    model, batch = latent_model(), dict(sorted(digits_batch(5).items()))
    paths = save_programs(model, tmp_path / "out", form)
    assert [path.name for path in paths] == [
        f"{name}.{form}" for name in ("encoder", "decoder_glyph", "decoder_label", "decoder_speech")
    ]
    z = torch.randn(5, model.latent.total_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [model.infer_latent(batch).mean, *(model.decode(z, [n])[n] for n in ("glyph", "label", "speech"))]
    for path, value in zip(paths, expected, strict=True):
        inputs = batch if path is paths[0] else z
        if runtime is None:
            (result,) = torch.export.load(path).module()(inputs).values()
        else:
            session = runtime.InferenceSession(path)
            names = [entry.name for entry in session.get_inputs()]
            tensors = [next(iter(batch[name].values())) for name in batch] if inputs is batch else [z]
            inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            result = torch.from_numpy(session.run(None, inputs)[0])
        torch.testing.assert_close(result, value, atol=1e-4, rtol=1e-4)


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Any) -> None:
    program = torch.export.export(torch.nn.Linear(20, 20), (torch.zeros(1, 20),))
    monkeypatch.setattr("m3ae.inference.export.export_programs", lambda model: {"model": program})
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        save_programs(tiny_of(M3AEForPreTraining), tmp_path / "programs")
    assert not (tmp_path / "programs").exists()
    assert save_programs(tiny_of(M3AEForPreTraining), tmp_path / "programs") == [tmp_path / "programs" / "model.pt2"]
