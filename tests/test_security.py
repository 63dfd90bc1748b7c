"""What the package promises about files from elsewhere and about secrets."""

import ast
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

import m3ae
from m3ae.files import CHECKSUMS, write_checksums
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.config import ConfigError, load_config
from m3ae.training.loop import train
from m3ae.training.run_folder import without_secrets

from .training.toy import ToyTask, toy_config

PACKAGE = Path(m3ae.__file__).parent
OWN_UNPICKLER = "transfer/checkpoints.py"  # builds tensors and plain values alone
OWN_MEMORY = "data/rows.py"  # reads back what the same process has pickled, never a file
HARMFUL = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "dill.load",
    "joblib.load",
    "os.system",
    "os.popen",
}
UNSAFE_YAML = {"yaml.full_load", "yaml.unsafe_load", "yaml.load_all"}
DOWNLOADED_CODE = {"evaluate.load", "torch.hub.load", "datasets.load_dataset"}


def complaint(call: ast.Call) -> str | None:
    """Return what is wrong with a call in the package."""
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in HARMFUL | UNSAFE_YAML | DOWNLOADED_CODE:
        return name
    if name == "torch.load" and options.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if name == "yaml.load" and options.get("Loader") != "_Loader":
        return "yaml.load with another loader than the safe one"
    if name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
        return "np.load with pickles"
    for option in ("trust_remote_code", "shell"):
        if options.get(option, "False") != "False":
            return f"{name}({option}={options[option]})"
    return None


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=True)", None),
        ("eval('1')", "eval"),
        ("model.eval()", None),
        ("subprocess.run(command, shell=True)", "subprocess.run(shell=True)"),
        ("AutoModel.from_pretrained(x, trust_remote_code=flag)", "AutoModel.from_pretrained(trust_remote_code=flag)"),
        ("yaml.load(text)", "yaml.load with another loader than the safe one"),
        ("np.load(path, allow_pickle=True)", "np.load with pickles"),
    ],
)
def test_complaints(code: str, found: str | None) -> None:
    assert complaint(ast.parse(code, mode="eval").body) == found  # type: ignore[arg-type]


def test_the_package_runs_nothing_that_a_file_holds() -> None:
    found, unpicklers = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            problem = complaint(node) if isinstance(node, ast.Call) else None
            if problem and (name, problem) != (OWN_MEMORY, "pickle.loads"):
                found.append(f"{name}:{node.lineno}: {problem}")
            if isinstance(node, ast.Import) and any(
                alias.name in ("pickle", "dill", "joblib") for alias in node.names
            ):
                unpicklers.append(name)
    assert found == []
    assert unpicklers == [OWN_MEMORY, OWN_UNPICKLER]


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.system", "!!timestamp 2001-01-01"]
)
def test_yaml_builds_plain_values_alone(tmp_path: Path, tag: str) -> None:
    target = tmp_path / "was-run"
    (tmp_path / "config.yaml").write_text(f"task: {tag.format(target)}\n")
    with pytest.raises(ConfigError, match="not valid YAML: could not determine a constructor"):
        load_config(tmp_path / "config.yaml")
    assert not target.exists()


class Harmful:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    """Checksums tell damage, not malice: who can change a file can change them, too."""
    target, run = tmp_path / "was-run", tmp_path / "run"
    train(toy_config(run, max_steps=2), ToyTask())
    (checkpoint,) = list_checkpoints(run)
    pickles = [path for path in checkpoint.iterdir() if path.suffix in (".pkl", ".bin", ".pt")]
    assert pickles
    for path in pickles:
        torch.save({"random_state": Harmful(target)}, path)
    (checkpoint / CHECKSUMS).unlink()
    write_checksums(checkpoint, last="state.json")
    train(toy_config(run, max_steps=4), ToyTask(), resume=True)
    assert not target.exists()
    pickle.loads(pickle.dumps(Harmful(target)))
    assert target.exists()  # it would have


def test_no_secret_enters_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"HF_TOKEN": "hf_made-up-token", "WANDB_API_KEY": "made-up-wandb-key", "MY_PASS": "made-up-password"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    command = ["m3ae", "pretrain", "x.yaml", f"a={secrets['HF_TOKEN']}", "b=https://me:letmein@host/data"]
    command += ["c=https://host/data?v=2&access_token=opensesame&n=1", "d=https://ghp_letmein@host"]
    monkeypatch.setattr(sys, "argv", command)
    train(toy_config(tmp_path / "run", max_steps=2, tracker="tensorboard"), ToyTask())
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "environment.json" for path in files)
    for path in files:
        contents = path.read_bytes()
        assert not [
            secret for secret in (*secrets.values(), "letmein", "opensesame") if secret.encode() in contents
        ], path
    assert without_secrets(" ".join(command)) == (
        "m3ae pretrain x.yaml a=$HF_TOKEN b=https://***@host/data "
        "c=https://host/data?v=2&access_token=***&n=1 d=https://***@host"
    )
    assert os.environ["HF_TOKEN"] in command[3]
