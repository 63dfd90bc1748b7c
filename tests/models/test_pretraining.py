import pytest
import torch

from m3ae import M3AEForPreTraining, M3AEModel
from tests.models.tiny import tiny_batch, tiny_config, tiny_model, tiny_of

SCHEDULES = ("separate", "joint")


@pytest.fixture(params=SCHEDULES)
def model(request: pytest.FixtureRequest) -> M3AEForPreTraining:
    return tiny_model(schedule=request.param)


def test_output_has_the_documented_shapes(model: M3AEForPreTraining) -> None:
    output = model(**tiny_batch())
    assert set(output.losses) == {"mim", "mlm", "itm"}
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    assert output.mim_logits.shape == (4, 16, 8 * 8 * 3)
    assert output.mim_mask.sum(1).tolist() == [12] * 4
    assert output.mlm_logits.shape == (4, 2, 128) and output.mlm_positions.shape == (4, 2)
    assert output.itm_logits.shape == (4, 2) and output.itm_labels.sum() == 2


def test_every_parameter_gets_a_gradient(model: M3AEForPreTraining) -> None:
    model(**tiny_batch()).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()


@pytest.mark.parametrize("name", ["mim", "mlm", "itm"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mim_layer", [1, -1, 2])
def test_one_objective_alone_equals_its_part_of_all(name: str, schedule: str, mim_layer: int) -> None:
    both = tiny_model(schedule=schedule, mim_layer=mim_layer)
    weights = {f"{other}_weight": float(other == name) for other in ("mim", "mlm", "itm")}
    alone = tiny_model(schedule=schedule, mim_layer=mim_layer, **weights)
    alone.load_state_dict(both.state_dict())
    output = alone(**tiny_batch())
    assert set(output.losses) == {name}
    torch.testing.assert_close(output.losses[name], both(**tiny_batch()).losses[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_contrast_is_an_option_that_leaves_the_rest_alone(schedule: str) -> None:
    plain, contrast = tiny_model(schedule=schedule), tiny_model(schedule=schedule, itc_weight=0.5)
    contrast.load_state_dict(plain.state_dict(), strict=False)
    before, after = plain(**tiny_batch()), contrast(**tiny_batch())
    assert set(after.losses) == {"mim", "mlm", "itm", "itc"} and plain.itc_head is None
    for name, loss in before.losses.items():
        torch.testing.assert_close(after.losses[name], loss)
    torch.testing.assert_close(after.loss, before.loss + 0.5 * after.losses["itc"])


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_contrast_alone_fuses_nothing(schedule, monkeypatch) -> None:
    weights = dict.fromkeys(("mim_weight", "mlm_weight", "itm_weight"), 0.0)
    model = tiny_model(schedule=schedule, itc_weight=1.0)
    alone = tiny_model(schedule=schedule, itc_weight=1.0, **weights)
    alone.load_state_dict(model.state_dict())
    expected = model(**tiny_batch()).losses["itc"]
    monkeypatch.setattr(alone.m3ae, "fuse", None)
    output = alone(**tiny_batch())
    assert list(output.losses) == ["itc"]
    torch.testing.assert_close(output.loss, expected)


def test_sigmoid_contrast_adds_a_bias_and_infonce_none(tmp_path) -> None:
    plain, sigmoid = tiny_model(itc_weight=1.0), tiny_model(itc_weight=1.0, itc_loss="sigmoid")
    assert sigmoid.state_dict().keys() - plain.state_dict().keys() == {"itc_head.bias"}
    assert (sigmoid.itc_head.log_scale.exp().item(), sigmoid.itc_head.bias.item()) == (pytest.approx(10), -10)
    output = sigmoid(**tiny_batch())
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in sigmoid.itc_head.parameters())
    sigmoid.itc_head.bias.data.fill_(-3.0)
    sigmoid.save_pretrained(tmp_path)
    loaded = M3AEForPreTraining.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**tiny_batch()).losses, sigmoid(**tiny_batch()).losses)
    with pytest.raises(ValueError, match=r"itc_loss is 'softmax'; expected one of 'infonce', 'sigmoid'"):
        tiny_config(itc_loss="softmax")


def test_embeddings_are_unit_vectors_that_ignore_padding() -> None:
    model, batch = tiny_model(itc_weight=1.0), tiny_batch()
    head, trunk = model.itc_head, model.m3ae
    text = head.embed("text", trunk.encode_text(batch["input_ids"], batch["attention_mask"]))
    assert text.shape == (4, 256)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(4))
    short = trunk.encode_text(batch["input_ids"][2:3, :8], batch["attention_mask"][2:3, :8])
    torch.testing.assert_close(head.embed("text", short)[0], text[2], atol=1e-6, rtol=0)


def test_separate_passes_equal_the_plain_procedure() -> None:
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch, image_ids=torch.arange(4), text_ids=torch.arange(4))
    trunk = model.m3ae
    text = trunk.encode_text(batch["input_ids"], batch["attention_mask"])
    matched = torch.where(output.itm_labels == 1)[0]
    image = trunk.encode_image(batch["pixel_values"])
    scores = model.score(text, image)
    torch.testing.assert_close(output.itm_logits[matched, 1], scores[matched])
    keep = batch["image_noise"].argsort(1)[:, :4]
    states = trunk.fuse({"text": text, "image": trunk.encode_image(batch["pixel_values"], keep)})
    restore = batch["image_noise"].argsort(1).argsort(1)
    torch.testing.assert_close(output.mim_logits, model.mim_head(states[1]["image"], restore))


def test_matching_scores_are_not_rounded_to_bfloat16() -> None:
    model, batch = tiny_of(M3AEForPreTraining), tiny_batch()

    def scores() -> torch.Tensor:
        text = model.m3ae.encode_text(batch["input_ids"], batch["attention_mask"])
        image = model.m3ae.encode_image(batch["pixel_values"])
        rows, columns = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
        return model.score(text.select(rows), image.select(columns))

    exact = scores()
    with torch.autocast("cpu", torch.bfloat16):
        found = scores()
    assert found.dtype == torch.float32 and (found != found.bfloat16()).all()
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0)


def test_joint_equals_plain_fusion_of_masked_inputs() -> None:
    model, batch = tiny_model(schedule="joint"), tiny_batch()
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 2] = batch["input_ids"][:, 2]
    masked = batch["input_ids"].clone()
    masked[:, 2] = 127
    output = model(**batch, mlm_input_ids=masked, mlm_labels=labels)
    keep = batch["image_noise"].argsort(1)[:, :4]
    text = model.m3ae.encode_text(masked, batch["attention_mask"])
    image = model.m3ae.encode_image(batch["pixel_values"], keep)
    states = model.m3ae.fuse({"text": text, "image": image})
    torch.testing.assert_close(output.mlm_logits[:, 0], model.mlm_head(states[-1]["text"][:, 2]))
    matched = output.itm_labels == 1
    logits = model.itm_head(model.m3ae.pool(states[-1]))
    torch.testing.assert_close(output.itm_logits[matched], logits[matched])


def test_batch_order_does_not_matter(model: M3AEForPreTraining) -> None:
    batch, order = tiny_batch(), torch.tensor([2, 0, 3, 1])
    before, after = model(**batch), model(**{name: value[order] for name, value in batch.items()})
    for name, loss in before.losses.items():
        torch.testing.assert_close(after.losses[name], loss, atol=1e-6, rtol=0)


def test_padding_does_not_matter(model: M3AEForPreTraining) -> None:
    batch = tiny_batch()
    longer = dict(batch)
    longer["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 4), value=1)
    longer["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 4))
    longer["text_noise"] = torch.nn.functional.pad(batch["text_noise"], (0, 0, 0, 4))
    before, after = model(**batch), model(**longer)
    for name, loss in before.losses.items():
        torch.testing.assert_close(after.losses[name], loss, atol=1e-6, rtol=0)


def test_an_absent_modality_leaves_the_other_samples_unchanged(model: M3AEForPreTraining) -> None:
    batch = tiny_batch()
    rest = {name: value[:2] for name, value in batch.items()}
    absent = {name: value.clone() for name, value in batch.items()}
    absent["pixel_values"][2] = torch.nan
    absent["input_ids"][3] = 1
    absent["attention_mask"][3] = 0
    presence = {
        "image_present": torch.tensor([True, True, False, True]),
        "text_present": torch.tensor([True, True, True, False]),
    }
    output, alone = model(**absent, **presence), model(**rest)
    assert output.itm_labels.tolist()[2:] == [-100, -100]
    torch.testing.assert_close(output.losses["itm"], alone.losses["itm"], atol=1e-6, rtol=0)
    torch.testing.assert_close(output.mlm_logits[:2], alone.mlm_logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.mim_logits[:2], alone.mim_logits, atol=1e-6, rtol=0)
    assert (output.mlm_labels[3] == -100).all() and not output.mim_mask[2].any()

    both_gone = {"image_present": torch.tensor([True, True, False, False])}
    both_gone["text_present"] = both_gone["image_present"]
    absent["pixel_values"][3] = torch.nan
    output = model(**absent, **both_gone)
    for name, loss in alone.losses.items():
        torch.testing.assert_close(output.losses[name], loss, atol=1e-6, rtol=0)
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_fused_features_ignore_absent_inputs() -> None:
    model, batch = tiny_model().m3ae, tiny_batch()
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    full, text_only = model(**inputs), model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"][1] = torch.nan
    output = model(**inputs, image_present=torch.tensor([True, False, True, True]))
    torch.testing.assert_close(output.pooler_output[[0, 2, 3]], full.pooler_output[[0, 2, 3]], atol=1e-6, rtol=0)
    torch.testing.assert_close(output.text_hidden_state[1], text_only.text_hidden_state[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(output.pooler_output[1], text_only.pooler_output[1], atol=1e-6, rtol=0)
    assert text_only.image_hidden_state is None and (text_only.pooler_output[:, 32:] == 0).all()
    with pytest.raises(ValueError, match="pixel_values, input_ids, or both"):
        model()


def test_a_modality_that_is_left_out_is_absent_from_every_sample(model: M3AEForPreTraining) -> None:
    batch, nobody = tiny_batch(), torch.zeros(4, dtype=torch.bool)
    images = {name: batch[name] for name in ("pixel_values", "image_noise", "match_noise")}
    output = model(**images)
    expected = model(**batch, text_present=nobody)
    torch.testing.assert_close(output.mim_logits, expected.mim_logits)
    torch.testing.assert_close(output.loss, output.losses["mim"])
    texts = {name: batch[name] for name in ("input_ids", "attention_mask", "text_noise", "match_noise")}
    output = model(**texts)
    torch.testing.assert_close(output.mlm_logits, model(**batch, image_present=nobody).mlm_logits)
    torch.testing.assert_close(output.loss, output.losses["mlm"])
    assert (output.itm_labels == -100).all() and not output.mim_mask.any()
    with pytest.raises(ValueError, match="pixel_values, input_ids, or both"):
        model()


def test_a_text_without_words_contributes_nothing(model: M3AEForPreTraining) -> None:
    batch = tiny_batch()
    batch["input_ids"][0] = torch.tensor([0, 2] + [1] * 10)
    batch["attention_mask"][0] = torch.tensor([1, 1] + [0] * 10)
    output = model(**batch)
    assert (output.mlm_labels[0] == -100).all() and output.loss.isfinite()
    rest = model(**{name: value[1:] for name, value in batch.items()})
    torch.testing.assert_close(output.losses["mlm"], rest.losses["mlm"], atol=1e-6, rtol=0)


def test_each_distinct_input_is_encoded_once(model: M3AEForPreTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    trunk = model.m3ae
    monkeypatch.setattr(trunk.image_encoder, "forward", _counted(trunk.image_encoder.forward, "image", calls))
    monkeypatch.setattr(trunk.text_encoder, "forward", _counted(trunk.text_encoder.forward, "text", calls))
    model(**tiny_batch())
    expected = {"separate": ["image", "image", "text", "text"], "joint": ["image", "text"]}
    assert sorted(calls) == expected[model.config.schedule]


def _counted(function, name, calls):
    def wrapper(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return wrapper


def test_noise_comes_from_the_generator() -> None:
    model, batch = tiny_model(), tiny_batch()
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    first = model(**inputs, generator=torch.Generator().manual_seed(3)).loss
    assert torch.equal(first, model(**inputs, generator=torch.Generator().manual_seed(3)).loss)
    assert not torch.equal(first, model(**inputs, generator=torch.Generator().manual_seed(4)).loss)


def test_further_words_leave_the_mask_token_alone() -> None:
    model, batch = tiny_model(mlm_probability=0.5), tiny_batch()
    batch["text_noise"][..., 1] = 0.5  # every chosen token becomes the mask
    read: list[torch.Tensor] = []
    model.m3ae.text_encoder.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    for vocab_size in (128, 140):
        model.resize_token_embeddings(vocab_size)
        model(**batch)
        changed = read[-1][read[-1] != batch["input_ids"]]
        assert len(changed) > 4 and set(changed.tolist()) == {127}, vocab_size
    assert model.config.text_config.vocab_size == 140 and model.mlm_head.decoder.out_features == 140
    model.resize_token_embeddings(127)
    with pytest.raises(ValueError, match="mask_token_id is 127, outside of a vocabulary of 127 words"):
        model(**batch | {"input_ids": batch["input_ids"].clamp(max=126)})


def test_masked_text_needs_labels() -> None:
    batch = tiny_batch()
    with pytest.raises(ValueError, match="needs mlm_labels"):
        tiny_model()(**batch, mlm_input_ids=batch["input_ids"])


def test_images_of_another_size_are_refused() -> None:
    batch = tiny_batch() | {"pixel_values": torch.zeros(4, 3, 40, 40)}
    with pytest.raises(ValueError, match="takes images of 32×32 px, got 40×40"):
        tiny_model()(**batch)


def test_gradient_checkpointing_gives_the_same_gradients(model: M3AEForPreTraining) -> None:
    gradients = []
    for enabled in (False, True):
        model.train()
        if enabled:
            enable_checkpointing(model)
        torch.manual_seed(0)
        model.zero_grad()
        model(**tiny_batch()).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)


def enable_checkpointing(model: M3AEForPreTraining) -> None:
    name = "activation_checkpointing_enable"  # `gradient_checkpointing_enable` before transformers 5.2x
    getattr(model, name, model.gradient_checkpointing_enable)()
    for layer in (
        model.m3ae.image_encoder.vit.blocks[0],
        model.m3ae.fusion.layers[0]["text"],
        model.mim_head.blocks[0],
    ):
        assert layer.gradient_checkpointing


def test_parameter_groups() -> None:
    model = tiny_model()
    groups = {name: model.parameter_group(name) for name, _ in model.named_parameters()}
    assert groups["m3ae.image_encoder.vit.pos_embed"] == "encoder.image"
    assert groups["m3ae.fusion.layers.0.text.norm.weight"] == "fusion"
    assert groups["mlm_head.decoder.bias"] == "heads"
    trunk = {model.m3ae.parameter_group(name) for name, _ in model.m3ae.named_parameters()}
    assert trunk == {"encoder.image", "encoder.text", "fusion"} and isinstance(model.m3ae, M3AEModel)
