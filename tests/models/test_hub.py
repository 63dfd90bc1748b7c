import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import PreTrainedModel, pipeline

import m3ae
from m3ae import M3AEForQuestionAnswering, M3AEImageProcessor, M3AEProcessor
from m3ae.models import hub as module
from m3ae.models.hub import QuestionAnsweringPipeline, model_card
from m3ae.transfer.text_encoders import load_tokenizer
from tests.images.test_dicom import write
from tests.models.tiny import tiny_model, tiny_of
from tests.transfer.released import word_tokenizer

CLASSES = [name for name in dir(m3ae) if re.fullmatch(r"M3AE(Model|For\w+)", name) and not name.endswith("Output")]


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_card(name: str) -> None:
    generates = name == "M3AEForGeneration"
    card = model_card(tiny_of(getattr(m3ae, name), **({"latent": {}} if generates else {})), "group/model")
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(code, "card", "exec")
    assert code.startswith(("import m3ae", "from m3ae import")) and "group/model" in code
    architecture = ["modalities image, text", "mopoe posterior"] if generates else ["32 px", "2 co-attention layers"]
    for part in (*architecture, "licence", "Not measured yet", "Not a medical device"):
        assert part in text
    assert "{" not in text.replace(code, "")


def test_the_card_names_heads_and_contrast() -> None:
    answers = tiny_of(m3ae.M3AEForQuestionAnswering, id2label=dict(enumerate("abc")))
    assert "a head chooses one of 3 answers" in model_card(answers, "x")
    assert "visual-question-answering" in model_card(answers, "x")
    assert "image-text contrast" not in model_card(tiny_model(), "x")
    assert "with image-text contrast" in model_card(tiny_model(itc_weight=1.0), "x")


class FakeHub:
    """Records what would be uploaded."""

    def __init__(self, exists: bool) -> None:
        self.exists, self.made, self.files = exists, [], {}

    def __call__(self, token=None) -> "FakeHub":
        self.token = token
        return self

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return self.exists

    def create_repo(self, repo_id: str, **options) -> SimpleNamespace:
        self.made.append((repo_id, options))
        return SimpleNamespace(repo_id=repo_id)

    def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str) -> None:
        self.files[repo_id, path_in_repo] = path_or_fileobj.decode()


def push(monkeypatch, model, exists: bool = False) -> FakeHub:
    hub = FakeHub(exists)
    monkeypatch.setattr(module, "HfApi", hub)
    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin.push_to_hub", lambda self, repo_id, **_: "address")
    assert model.push_to_hub("group/model", token="secret", private=True) == "address"
    assert hub.token == "secret"
    return hub


def test_push_to_hub_uploads_a_generated_card(monkeypatch) -> None:
    model = tiny_model()
    hub = push(monkeypatch, model)
    assert hub.made == [("group/model", {"private": True, "exist_ok": True})]
    assert hub.files == {("group/model", "README.md"): model_card(model, "group/model")}


def test_push_to_hub_uploads_the_card_that_the_model_was_loaded_with(monkeypatch, tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# Trained on phantoms")
    hub = push(monkeypatch, m3ae.M3AEForPreTraining.from_pretrained(tmp_path))
    assert hub.files == {("group/model", "README.md"): "# Trained on phantoms"}


def test_a_new_head_does_not_inherit_the_card(monkeypatch, tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# Trained on phantoms")
    hub = push(monkeypatch, m3ae.M3AEForQuestionAnswering.from_pretrained(tmp_path))
    assert "a head chooses one of 2 answers" in hub.files["group/model", "README.md"]


def test_push_to_hub_keeps_the_card_of_the_repository(monkeypatch) -> None:
    hub = push(monkeypatch, tiny_model(), exists=True)
    assert hub.files == {} and hub.made == []


@pytest.mark.parametrize("repo_id", ["group/model", None])
def test_saving_uploads_the_card_too(monkeypatch, tmp_path, repo_id: str | None) -> None:
    hub, saved = FakeHub(False), []
    monkeypatch.setattr(module, "HfApi", hub)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda self, folder, **options: saved.append(options))
    options = {"push_to_hub": True, "token": "secret", "private": True} | ({"repo_id": repo_id} if repo_id else {})
    tiny_model().save_pretrained(tmp_path / "named", **options)
    name = repo_id or "named"
    assert saved == [options] and hub.token == "secret" and hub.made == [(name, {"private": True, "exist_ok": True})]
    assert hub.files == {(name, "README.md"): model_card(tiny_model(), name)}
    tiny_model().save_pretrained(tmp_path)
    assert len(hub.files) == 1


ANSWERS = ["yes", "no", "left", "right", "effusion", "none", "mass"]
IMAGE = Image.linear_gradient("L").resize((50, 40))
QUESTION = {"image": IMAGE, "question": "is there an effusion"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(word_tokenizer(tmp_path_factory.mktemp("words"), 128))
    tokenizer.model_max_length = 16
    tiny_of(M3AEForQuestionAnswering, id2label=dict(enumerate(ANSWERS))).save_pretrained(folder)
    M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answer(folder) -> QuestionAnsweringPipeline:
    return pipeline("m3ae-question-answering", str(folder), device="cpu")


def test_answers_with_probabilities(answer, folder) -> None:
    assert isinstance(answer, QuestionAnsweringPipeline)
    found = answer(QUESTION)
    inputs = M3AEProcessor.from_pretrained(folder)(
        images=IMAGE.convert("RGB"), text=QUESTION["question"], return_tensors="pt"
    )
    with torch.no_grad():
        scores = answer.model(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    scores = scores.logits[0].sigmoid()
    best = scores.argsort(descending=True)[:5].tolist()
    assert [row["answer"] for row in found] == [ANSWERS[index] for index in best]
    assert [row["score"] for row in found] == pytest.approx(scores[best].tolist())


def test_lists_batches_files_and_long_questions(answer, tmp_path) -> None:
    IMAGE.save(tmp_path / "image.png")
    questions = [QUESTION, {"image": str(tmp_path / "image.png"), "question": "is there " * 30}]
    alone = [answer(question, top_k=2) for question in questions]
    together = answer(questions, top_k=2, batch_size=2)
    assert [len(rows) for rows in together] == [2, 2]
    for rows, own in zip(together, alone, strict=True):
        assert [row["answer"] for row in rows] == [row["answer"] for row in own]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in own], abs=1e-4)
    assert len(answer(QUESTION, top_k=100)) == len(ANSWERS)


def test_wide_images_arrays_and_dicom_are_answered_like_8_bit_ones(answer, tmp_path) -> None:
    pixels = np.asarray(IMAGE)
    low, high = int(pixels.min()), int(pixels.max())
    pixels = np.round((pixels - low) * (255.0 / (high - low))).astype(np.uint8)
    Image.fromarray(pixels.astype(np.uint16) * 16).save(tmp_path / "a.png")
    write(tmp_path / "a.dcm", pixels.astype(np.uint16) * 16, bits=12)
    kinds = [Image.fromarray(pixels), pixels / 255, pixels, str(tmp_path / "a.png"), tmp_path / "a.dcm"]
    answers = [answer({**QUESTION, "image": image}) for image in kinds]
    assert answers[1:] == answers[:1] * 4


def test_a_saved_pipeline_loads_again_in_bfloat16(answer, tmp_path) -> None:
    answer.save_pretrained(tmp_path)
    again = pipeline("m3ae-question-answering", str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert again(QUESTION)[0]["score"] == pytest.approx(answer(QUESTION)[0]["score"], abs=0.05)


def test_wrong_calls(answer) -> None:
    with pytest.raises(ValueError, match="or a list of these; got Image"):
        answer(IMAGE)
    with pytest.raises(ValueError, match=r"got \['image', 'text'\]"):
        answer({"image": IMAGE, "text": "?"})
    with pytest.raises(ValueError, match="no option topk; it has top_k and batch_size"):
        answer(QUESTION, topk=3)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        answer(QUESTION, top_k=0)
