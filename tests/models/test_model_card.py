import re
from types import SimpleNamespace

import pytest
import yaml
from transformers import PreTrainedModel

import m3ae
from m3ae.models import hub as module
from m3ae.models.hub import model_card
from tests.models.tiny import tiny_model, tiny_of

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
