"""Tasks over processes, results in order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
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
    """Return the number of cores that this process may use: its affinity, and the quota of its control group."""
    from joblib import cpu_count  # scikit-learn's; slow to import

    cores: int = cpu_count()
    return cores


def worker_count(num_tasks: int, num_workers: int | None = None) -> int:
    """Return how many processes some tasks are worth: at most `num_workers`, by default one per core."""
    return min(num_workers or available_cores(), num_tasks // TASKS_PER_WORKER)


def map_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int) -> Generator[Result]:
    """Yield the result of a function for each task, in the order of the tasks; few tasks and results wait in memory.

    Args:
        function: A picklable function.
        tasks: Picklable arguments.
        num_workers: The number of processes, see `worker_count`; below 2 this process does the tasks.

    Raises:
        ChildProcessError: A worker was killed.
    """
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
