"""Prepare a folder in child processes that are killed at random moments, until one gets to the end.

`python -m tests.data.kill_prepare SOURCE OUTPUT SEED` prints the number of kills.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from m3ae.data.prepare import prepare
from m3ae.data.sources import load_source


def start(source: Path, output: Path) -> int:
    child = os.fork()
    if child == 0:
        prepare("folder", output, source=source, num_shards=10, num_workers=1)
        os._exit(0)
    return child


def main(source: Path, output: Path, seed: int) -> None:
    load_source("folder")
    durations = []
    for name in ("warm-up", "uninterrupted"):
        begun = time.perf_counter()
        os.waitpid(start(source, output.with_name(name)), 0)
        durations.append(time.perf_counter() - begun)
    draw, kills = random.Random(seed), 0
    while True:
        child = start(source, output)
        time.sleep(draw.uniform(0, min(durations) / 3) * (1 + kills / 5))  # grows, so that one gets to the end
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            break
        kills += 1
    print(f"kills: {kills}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
