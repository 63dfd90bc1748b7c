"""The sources that can be prepared, by name; a module is imported when its source is used.

A source is a module with `FEATURES` and `rows(...)`, an iterator of rows, `Rejected` and `Metadata`. A row has a
unique `id`, a `split`, `text` (a list of strings, or None) where that is a column, and one cell for every other column
of `FEATURES`. An image cell is None, the path of a file, a picklable function without arguments that returns a PIL
image, or the bytes of an encoded image, which are kept. A cell of numbers may be a list, the path of a `.npy` file, or
a picklable function that returns an array. A source may derive files from the rows that were kept, such
as a list of answers: `extras(rows by split, arguments of rows)` returns their contents by name; `prepare` prints the
`summary` of each. `LEFT_OUT_BY_CHOICE` lists reasons for rejecting rows that an option chose and that are no sign of a
fault. `rows` raises FileNotFoundError for a missing folder or file, and ValueError for a damaged file, a missing
column or an argument out of range, before its first row or later.
"""

from importlib import import_module
from types import ModuleType

SOURCES = {
    "digits": "m3ae.data.sources.digits",
    "folder": "m3ae.data.sources.folder",
    "iu_xray": "m3ae.data.sources.iu_xray",
    "medicat": "m3ae.data.sources.medicat",
    "melinda": "m3ae.data.sources.melinda",
    "mimic_cxr": "m3ae.data.sources.mimic_cxr",
    "phantom": "m3ae.data.phantom",
    "roco": "m3ae.data.sources.roco",
    "rocov2": "m3ae.data.sources.rocov2",
    "skull": "m3ae.data.sources.skull",
    "slake": "m3ae.data.sources.slake",
    "vqa_med_2019": "m3ae.data.sources.vqa_med_2019",
    "vqa_rad": "m3ae.data.sources.vqa_rad",
}


def register_source(name: str, module: str) -> None:
    """Add a module as a source, as in a file of the user: `register_source("clinic", __name__)`.

    Raises:
        ValueError: Another module has this name.
    """
    if SOURCES.setdefault(name, module) != module:
        raise ValueError(f"the source {name!r} exists already, the module {SOURCES[name]}: choose another name")


def source_module(name: str) -> str:
    """Return the name of a source's module; raise ValueError for an unknown source."""
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: expected one of {', '.join(SOURCES)}")
    return SOURCES[name]


def load_source(name: str) -> ModuleType:
    """Import the module of a source; raise ValueError for an unknown source."""
    return import_module(source_module(name))
