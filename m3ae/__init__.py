"""Masked multimodal autoencoders for medical images and text.

Importing the package registers its models with transformers' Auto classes, and its pipeline. The command `m3ae` does
so when it needs a model, since PyTorch and transformers take seconds to import.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The command starts in the module `m3ae_command`, or as `python -m m3ae`: then argv[0] is "-m" during this import.
_IS_COMMAND = "m3ae_command" in sys.modules or (sys.argv[:1] == ["-m"] and "m3ae" in sys.orig_argv)

_BY_MODULE = {  # names that are imported when they are used; those of data and tasks need the extra `train`
    "ArrayDataset": "m3ae.data.arrays",
    "predict": "m3ae.inference.prediction",
    "register_report_metric": "m3ae.metrics.reports",
    "register_source": "m3ae.data.sources",
    "train_generation": "m3ae.tasks.arrays",
}

if TYPE_CHECKING:
    from m3ae.data.arrays import ArrayDataset as ArrayDataset
    from m3ae.data.sources import register_source as register_source
    from m3ae.inference.prediction import predict as predict
    from m3ae.metrics.reports import register_report_metric as register_report_metric
    from m3ae.tasks.arrays import train_generation as train_generation

if TYPE_CHECKING or not _IS_COMMAND:
    from m3ae.models import *  # noqa: F403
    from m3ae.models import __all__ as __all__

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _BY_MODULE:
            return getattr(import_module(_BY_MODULE[name]), name)
        if not _IS_COMMAND or not (name[0].isupper() or name.startswith("register_")):  # a module, not a public name
            raise AttributeError(f"module 'm3ae' has no attribute {name!r}")
        return getattr(import_module("m3ae.models"), name)


__version__ = "0.1.0.dev0"
