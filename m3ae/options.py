"""Options that a person types, checked against what takes them: a section, a function or a class of options."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

STRICT = ConfigDict(extra="forbid", frozen=True)
MAX_NODES = 10_000  # of YAML, aliases spelt out: a few hundred bytes of nested anchors would stand for billions
ModelT = TypeVar("ModelT", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists all its problems, one a line."""


class OptionsError(ValueError):
    """Options that cannot be used; `problems` has a line for each, which begins with its key."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = [*problems]


def check_options(
    model: type[ModelT], values: Mapping[str, Any], elsewhere: Callable[[str], str] | None = None
) -> ModelT:
    """Return the options as a model; a string may become a path and a list a tuple, but "10" is no number.

    Args:
        model: Names and types of the options.
        values: The options.
        elsewhere: Says of an unknown key where it would be known, or nothing.

    Raises:
        OptionsError: A key is unknown or missing, or a value has the wrong type or range.
    """
    try:
        text = json.dumps(values, default=_plain, ensure_ascii=False)
        if re.search("[\ud800-\udfff]", text):
            return model.model_validate(values)  # the name of a file that is not UTF-8, which JSON cannot hold
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in _explain(problem, model, elsewhere)]
        raise OptionsError(problems) from None


def _plain(value: Any) -> Any:
    """Return a section as its options, and what JSON has no type for, such as a path, as text."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def function_options(
    function: Callable[..., Any], skip: Collection[str] = (), base: type[BaseModel] | None = None
) -> type[BaseModel]:
    """Return a model of the keywords that a function takes.

    Args:
        function: A function whose parameters have types.
        skip: Parameters that are no options.
        base: A model with further options.
    """
    types, fields = get_type_hints(function), dict[str, Any]()
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in skip:
            fields[name] = (types[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
    if base is None:
        return create_model(function.__name__, __config__=STRICT, **fields)
    return create_model(function.__name__, __base__=base, **fields)


def class_options(
    options: type[Any],
    nested: Mapping[str, Any],
    extra: Collection[str] = (),
    imported: Mapping[str, Any] | None = None,
) -> type[BaseModel]:
    """Return a model of some options of a dataclass; the class itself checks choices and ranges.

    Args:
        options: The dataclass.
        nested: Types of fields that are options themselves.
        extra: Further keywords that the class takes.
        imported: Names in its annotations that its module imports for type checkers only.
    """
    types = get_type_hints(options, localns=dict(imported or {}))
    fields = {name: nested.get(name, _without_choices(types[name])) for name in options.__dataclass_fields__}
    fields |= dict.fromkeys(extra, Any)
    keywords: dict[str, Any] = {name: (kind, None) for name, kind in fields.items()}
    config = STRICT | ConfigDict(protected_namespaces=(), arbitrary_types_allowed=True)
    return create_model(options.__name__, __config__=config, **keywords)


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a model and of the models in it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _models_in(field.annotation):
            yield from dotted_keys(section, f"{prefix}{name}.")


def unknown_keys(names: Collection[str], known: Collection[str]) -> list[str]:
    """Return a problem for each of the names that is no known key."""
    problems = []
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known) or [*known]
            problems.append(f"{name}: unknown key; did you mean {' or '.join(nearest[:3])}?")
    return problems


def describe(value: Any) -> str:
    """Return a value, its beginning if it is long, and its type in words."""
    text = repr(value)
    return "nothing" if value is None else f"{text if len(text) <= 300 else f'{text[:300]}…'} ({type(value).__name__})"


def _without_choices(kind: Any) -> Any:
    return Any if any(get_origin(member) is Literal for member in (kind, *get_args(kind))) else kind


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a value of some type may hold: a section, a list of sections, or sections by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _explain(problem: Any, model: type[BaseModel], elsewhere: Callable[[str], str] | None) -> list[str]:
    key = ".".join(str(name) for name in problem["loc"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        return [f"{key}: unknown key; {(elsewhere and elsewhere(key)) or _nearest(problem['loc'], model)}"]
    if kind == "missing":
        return [f"{key}: missing; expected a value"]
    if kind == "json_invalid":  # all that JSON cannot hold is half a character, "\\ud800"
        return [f"not valid text: {problem['ctx']['error']}"]
    if kind == "value_error":
        error = problem["ctx"]["error"]  # a validator names keys of its section
        return [".".join(filter(None, [key, line])) for line in getattr(error, "problems", [str(error)])]
    expected = problem["msg"].removeprefix("Input should be ")
    return [f"{key}: got {describe(problem['input'])}, expected {expected}"]


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Say which keys a person may have meant: one of the same section rather than one of another section."""
    *path, name = loc
    section = model
    for step in path:  # what is no field is a position in a list, or a name that the person chose
        field = section.model_fields.get(str(step))
        section = next(iter(_models_in(field.annotation)), section) if field else section
    prefix = "".join(f"{step}." for step in path if isinstance(step, str))
    siblings = [prefix + field for field in section.model_fields]
    everywhere = {key: key.rpartition(".")[2] for key in dotted_keys(model)}
    similar = [prefix + field for field in difflib.get_close_matches(str(name), section.model_fields)]
    if not similar:
        names = {str(name)} & {*everywhere.values()} or {*difflib.get_close_matches(str(name), {*everywhere.values()})}
        similar = [key for key, end in everywhere.items() if end in names]
    return f"did you mean {' or '.join(similar)}?" if similar else f"expected one of {siblings}"


class _Loader(yaml.SafeLoader):
    """The safe loader with the types of JSON and the scalars of YAML 1.2: `1e-4` is a number and `no` is a word."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (an attribute of PyYAML)
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def parse_yaml(text: str, source: str) -> Any:
    """Return what YAML holds, numbers and words as in YAML 1.2; a `ConfigError` names the source."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if math.isinf(size := _size(node, {})):
            raise ValueError("an alias must not stand inside what it names")
        if size > MAX_NODES:
            raise ValueError(f"{size:g} values with all aliases spelt out, expected at most {MAX_NODES:,}")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # also for 5,000 digits, or `!!bool x`
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _size(node: Any, sizes: dict[int, float]) -> float:
    """Return the number of values in a node of YAML, aliases spelt out; infinity if it contains itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        values = (child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,)))
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in values)
    return sizes[id(node)]


def assign(values: dict[str, Any], override: str) -> None:
    """Set a value of nested sections by `section.key=value`; `model=PATH` is short for `model.path=PATH`."""
    key, separator, text = override.partition("=")
    if key == "model" and not text.startswith("{"):
        key = "model.path"
    *sections, name = key.split(".")
    if not separator or not all([*sections, name]):
        raise ConfigError(f"override {override!r}: expected key=value with a dotted key, e.g. training.max_steps=10")
    for depth, section in enumerate(sections, start=1):
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            parent = ".".join(sections[:depth])
            raise ConfigError(f"override {override!r}: {parent} is {describe(values)}, which has no keys")
    values[name] = parse_yaml(text, source=f"override {override!r}")


@contextmanager
def named(prefix: str) -> Iterator[None]:
    """Turn what refuses options into OptionsErrors whose lines begin with a prefix."""
    try:
        yield
    except (StrictDataclassError, ValueError) as error:
        problems = error.problems if isinstance(error, OptionsError) else [" ".join(str(error).split())]
        raise OptionsError([f"{prefix}{problem}" for problem in problems]) from error
