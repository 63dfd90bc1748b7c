import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts import their neighbours


def running_here(*arguments: Any) -> nullcontext[Any]:
    """`pretrain_step.running`, in this process."""
    import pretrain_step

    return nullcontext(pretrain_step.Procedure(*arguments).measure)
