"""The house rules, read from the syntax trees of the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import m3ae
from m3ae.models.modalities import KINDS

PACKAGE = Path(m3ae.__file__).parent
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
LAYERS = (
    ("figures", "files", "images", "options", "precision", "words"),
    ("models",),
    ("transfer",),
    ("data",),
    ("metrics",),
    ("inference",),
    ("training",),
    ("evaluation", "tasks"),
    ("app", "commands"),
    ("cli", "__main__"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "deepspeed", "evaluate")
PRIVATE = {
    "models/modeling.py: _hf_hook": "accelerate has no public name for the hook that moves an offloaded module",
    "models/modeling.py: _get_resized_embeddings": "transformers resizes the embeddings of its own models alone",
    "models/modeling.py: _get_resized_lm_head": "transformers resizes the heads of its own models alone",
    "inference/search.py: _commit_hash": "transformers keeps the revision of a model from the hub nowhere else",
    "training/safety.py: _get_default_store": "torch has no public name for the store of the process group",
}
MAX_LINES, MAX_FUNCTION_LINES = 400, 60


def layer(name: str) -> int:
    """Return the height of a file or a module."""
    first = name.removeprefix("m3ae.").removesuffix(".py").replace("/", ".").split(".")[0]
    return HEIGHT.get(first, len(LAYERS))  # the package itself, which lists public names


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_file_has_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names - {"__init__"} == HEIGHT.keys()


def test_a_file_uses_what_stands_below_it() -> None:
    modules = {(file, module) for file, tree in TREES.items() for module in imports(tree)}
    upward = {(file, name) for file, name in modules if name.startswith("m3ae.") and layer(name) > layer(file)}
    assert not upward


def kind_tests(tree: ast.AST) -> Iterator[str]:
    """Yield comparisons with the name of a kind of modality, and tables whose keys are the names of kinds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            asks = any(getattr(part, "attr", getattr(part, "id", "")) in ("kind", "kinds") for part in operands)
            constants = {
                part.value for operand in operands for part in ast.walk(operand) if isinstance(part, ast.Constant)
            }
            if asks and constants & KINDS.keys():
                yield ast.unparse(node)
        elif isinstance(node, ast.Dict):
            if {"vector", "sequence"} <= {key.value for key in node.keys if isinstance(key, ast.Constant)}:
                yield ast.unparse(node)
        elif isinstance(node, ast.Match) and getattr(node.subject, "attr", "") == "kind":
            yield ast.unparse(node)


def test_nothing_but_the_kinds_asks_for_the_kind() -> None:
    tests = {file: [*kind_tests(tree)] for file, tree in TREES.items() if "modalities/" not in file}
    assert not {file: matches for file, matches in tests.items() if matches}


def attributes_by_name(tree: ast.AST) -> Iterator[str]:
    """Yield `getattr` and `hasattr` on a task."""
    for node in ast.walk(tree):
        by_name = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr")
        if by_name and "task" in ast.unparse(node.args[0]):
            yield ast.unparse(node)


def test_a_task_has_every_method_by_name() -> None:
    calls = {file: [*attributes_by_name(tree)] for file, tree in TREES.items()}
    assert not {file: matches for file, matches in calls.items() if matches}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a file gives to functions, classes, attributes and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


TUPLES = {"_replace", "_asdict", "_fields"}  # public methods of named tuples
OURS = TUPLES | {name for tree in TREES.values() for name in defined_names(tree)}


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield private names of others: attributes, also by `getattr`, and what is imported from the libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in OURS:
            if ast.unparse(node) != "os._exit":  # which is public
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from filter(is_private, [*(node.module or "").split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in OURS:
                yield str(name.value)


def test_private_names_of_others_have_a_reason() -> None:
    used = {f"{file}: {name}" for file, tree in TREES.items() for name in private_names(tree)}
    assert used == PRIVATE.keys() and len(PRIVATE) <= 5


@pytest.mark.parametrize(
    ("find", "source", "count"),
    [
        (kind_tests, 'if kind == "image": ...\nif modality.kind in ("text", "label"): ...', 2),
        (kind_tests, 'TENSORS = {"image": 1, "vector": 2, "sequence": 3}', 1),
        (kind_tests, 'if latent.kind == "moe": ...\nbatch = {"image": 1, "text": 2}', 0),
        (attributes_by_name, 'getattr(task, "report", None)\nhasattr(self.task, "save")\ngetattr(model, "x")', 2),
        (private_names, "from torch._dynamo import x\nmodel._hf_hook\ngetattr(model, '_commit_hash')", 3),
        (private_names, "row._replace(id=1)\nself.__dict__", 0),
    ],
)
def test_the_rules_see_what_breaks_them(find, source: str, count: int) -> None:
    assert len([*find(ast.parse(source))]) == count


def test_files_and_functions_are_short() -> None:
    long = {file: length for file, tree in TREES.items() if (length := last_line(tree)) > MAX_LINES}
    long |= {
        f"{file}: {node.name}": length
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (length := body_lines(node)) > MAX_FUNCTION_LINES
    }
    assert not long


def last_line(tree: ast.Module) -> int:
    return tree.body[-1].end_lineno or 0 if tree.body else 0


def body_lines(function: ast.FunctionDef) -> int:
    """Return the number of lines of a function behind its docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1
