"""Tasks over processes, results in order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from threading import Thread
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_PER_WORKER = 4  # fewer are not worth the seconds that a worker takes to start


def available_cores() -> int:
    """Return the number of cores that this process may use, or of all cores where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[Task], Result], tasks: list[Task], num_workers: int | None = None
) -> Generator[Result]:
    """Yield the result of a function for each task, in the order of the tasks; few results wait in memory.

    Args:
        function: A picklable function.
        tasks: Picklable arguments; a few tasks are done in this process.
        num_workers: The number of processes; by default one per core.

    Raises:
        ChildProcessError: A worker was killed.
    """
    num_workers = min(num_workers or available_cores(), len(tasks) // TASKS_PER_WORKER)
    if num_workers <= 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(num_workers, mp_context=_worker_context(), initializer=_start_worker)
    try:
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > TASKS_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process was killed, most often because memory ran out: use fewer with --num-workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _worker_context() -> BaseContext:
    """Return a context that does not fork this process, where Arrow and PyTorch run threads that hold locks."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["m3ae_command", "m3ae.data.rows"])  # once for all workers, and without models
    return context


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed; a worker would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()
