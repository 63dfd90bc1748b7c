"""Command-line options from the signature and the docstring of a function, so that each is described once."""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click


def declaration(module: str, name: str) -> Callable[..., Any]:
    """Return a function for its signature and docstring; its module's file is read where it has not been imported.

    The libraries that a module imports take seconds, which help must not.

    Args:
        module: Name of the module.
        name: Name of the function. Builtin types, `Path`, `Any`, `Literal` and `Sequence` are its annotations, and
            literals or the module's constants its defaults.
    """
    if module in sys.modules:
        function: Callable[..., Any] = getattr(sys.modules[module], name)
        return function
    nodes = parse_module(module).body
    constants = [node for node in nodes if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    (node,) = (node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name)
    node.body, node.returns = node.body[:1], None
    namespace: dict[str, Any] = {"Any": Any, "Literal": Literal, "Path": Path, "Sequence": Sequence}
    exec(compile(ast.Module([*constants, node], []), module, "exec"), namespace)
    declared: Callable[..., Any] = namespace[name]
    return declared


def parse_module(module: str) -> ast.Module:
    """Return the syntax tree of a module that is not imported."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def options_of(function: Callable[..., Any], skip: Collection[str] = ()) -> list[click.Option]:
    """Return an option for every parameter of a function; those without a default are required.

    Args:
        function: its parameters are strings, numbers, booleans, paths or literals, possibly None, and the `Args:` of
            its docstring describe each.
        skip: parameters that get no option.
    """
    types, helps = get_type_hints(function), describe_arguments(function)
    return [
        _option(name, parameter.default, types[name], helps.get(name))
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in skip
    ]


def describe_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the `Args:` of a docstring say, by name of the argument."""
    section = re.search(r"^Args:\n((?: .*\n?)+)", inspect.getdoc(function) or "", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()).removesuffix(".") for name, text in entries}


def describe(function: Callable[..., Any]) -> str:
    """Return what a docstring says before its `Args:`, `Returns:` and the like."""
    return re.split(r"\n\n\w+:\n", inspect.getdoc(function) or "")[0]


def example_of(command: str) -> str:
    r"""Return the last part of a help text; `\b` keeps click from filling its lines."""
    return f"\b\nExample:\n  {command}"


def _option(name: str, default: Any, annotation: Any, help: str | None) -> click.Option:
    flag = "--" + name.replace("_", "-")
    if annotation is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}" if default else flag], is_flag=True, default=default, help=help)
    required = default is inspect.Parameter.empty
    shown: dict[str, Any] = {} if required else {"default": default, "show_default": True}
    return click.Option([flag], type=_type(annotation), required=required, help=help, **shown)


def _type(annotation: Any) -> click.ParamType[Any]:
    union = get_origin(annotation) in (Union, UnionType)
    members = [member for member in get_args(annotation) if member is not NoneType] if union else [annotation]
    if Path in members:
        return click.Path(path_type=Path)
    if get_origin(members[0]) is Literal:
        return click.Choice(get_args(members[0]))
    return {str: click.STRING, int: click.INT, float: click.FLOAT}[members[0]]
