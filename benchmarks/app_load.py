"""The app under many clients: errors, seconds of an answer, memory, and files that stay after SIGTERM.

    python benchmarks/app_load.py --model runs/phantom --data data/phantom-12k [--clients 20] [--seconds 60]

The app serves a pre-trained model and a prepared set. Each client uploads an image and asks for a reconstruction, a
search by text, a search by image or a row of the set, one after the other, until the time is up. Before that, each
client asks for each of them once. The exit status is 1 if an answer is an error, if the memory of the last third
exceeds that of the middle one by more than 2 %, if the app does not end by SIGTERM, or if a file is left.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gradio_client
import numpy as np
import psutil
from PIL import Image
from soak import TOLERATED, growth, look


class Client:
    """A client, whose requests are drawn from a seed."""

    def __init__(self, address: str, data: str, folder: Path, seed: int) -> None:
        self.draw, self.client = (
            random.Random(seed),
            gradio_client.Client(address, verbose=False, download_files=False),
        )
        image = folder / f"{seed}.png"
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8)).save(image)
        self.image, self.data = gradio_client.handle_file(str(image)), data

    def requests(self) -> dict[str, tuple[Any, ...]]:
        """Return the arguments of each request."""
        seed, text = self.draw.randrange(1000), f"finding number {self.draw.randrange(1000)}"
        return {
            "/run": (self.image, text, 0.5, 0.3, seed),
            "/find_images": (text, f"{self.data}, test"),
            "/find_texts": (self.image, f"{self.data}, test"),
            "/draw": (self.data, "test", self.draw.randrange(10)),
        }

    def ask_each(self) -> None:
        """Send each request once."""
        for name, arguments in self.requests().items():
            self.client.predict(*arguments, api_name=name)

    def ask(self, until: float) -> list[tuple[str, float, str]]:
        """Ask until a time; return the request, the seconds and the error of each."""
        answers = []
        while time.monotonic() < until:
            name, arguments = self.draw.choice([*self.requests().items()])
            begun, error = time.monotonic(), ""
            try:
                self.client.predict(*arguments, api_name=name)
            except Exception as problem:  # counted, whatever it is
                error = f"{name}: {type(problem).__name__}: {problem}"[:200]
            answers.append((name, time.monotonic() - begun, error))
        return answers


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="The app under many clients.")
    parser.add_argument("--model", required=True, help="a pre-trained model")
    parser.add_argument("--data", required=True, help="a prepared set with the split test")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.model, arguments.data, arguments.clients, arguments.seconds, Path(folder))
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    grew = figures["memory_growth"] > TOLERATED["memory, training"]
    sys.exit(bool(grew or figures["errors"] or figures["left"] or figures["status"] != 128 + signal.SIGTERM))


def measure(model: str, data: str, clients: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Serve, ask, end the app by SIGTERM, and return the figures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (temporary := folder / "temporary").mkdir()
    command = [sys.executable, "-m", "m3ae", "app", "--model", model, "--data", data, "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        address = app.stdout.readline().partition(",")[0]
        process, samples = psutil.Process(app.pid), list[dict[str, float]]()
        with ThreadPoolExecutor(clients) as pool:
            made = list(pool.map(lambda seed: Client(address, data, folder, seed), range(clients)))
            made[0].ask_each()  # builds the search index
            list(pool.map(Client.ask_each, made))  # all threads of the app have their memory from here on
            until = time.monotonic() + seconds
            asked = [pool.submit(client.ask, until) for client in made]
            while time.monotonic() < until:
                samples.append(look(process))
                time.sleep(0.5)
            answers = [answer for one in asked for answer in one.result()]
        files = sum(path.is_file() for path in temporary.rglob("*"))
        app.send_signal(signal.SIGTERM)
        status = app.wait(60)
    took = [duration for _, duration, _ in answers]
    return {
        "clients": clients,
        "answers": dict(Counter(name for name, *_ in answers)),
        "errors": dict(Counter(error for *_, error in answers if error)),
        "median_seconds": median(took),
        "p95_seconds": quantiles(took, n=20)[-1],
        "memory_mb": [round(sample["memory, training"]) for sample in samples[:: max(1, len(samples) // 10)]],
        "memory_growth": growth(samples, "memory, training"),
        "open_files": [samples[0]["open files"], samples[-1]["open files"]],
        "threads": [samples[0]["threads"], samples[-1]["threads"]],
        "files_before_the_end": files,
        "left": sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()),
        "status": status,
    }


if __name__ == "__main__":
    main()
