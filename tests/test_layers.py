"""The order of the package: a file uses what stands below it, never above."""

import ast
from collections.abc import Iterator
from pathlib import Path

import m3ae

PACKAGE = Path(m3ae.__file__).parent
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
EXCEPTIONS = {("models/processing.py", "m3ae.images.files")}  # a processor takes paths, as those of transformers do
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imports() -> Iterator[tuple[str, str]]:
    """Yield each file of the package with each module of the package that it imports, wherever in the file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else named
            yield from ((file, module) for module in named if module.startswith("m3ae."))


def layer(name: str) -> int:
    """Return the height of a file or a module."""
    first = name.removeprefix("m3ae.").removesuffix(".py").replace("/", ".").split(".")[0]
    return HEIGHT[first] if first in HEIGHT else len(LAYERS)  # the package itself, which lists public names


def test_every_file_has_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names - {"__init__"} == HEIGHT.keys()


def test_a_file_uses_what_stands_below_it() -> None:
    upward = {(file, module) for file, module in imports() if layer(module) > layer(file)}
    assert not upward
