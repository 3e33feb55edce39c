"""Many environments at once, in worker processes that share memory with this one."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.rendering import choose_backend
from tdmpc2.envs.shared_arrays import PoolLayout, SharedArrays, anonymous_file
from tdmpc2.envs.worker import Failure, Slots, WorkerPost
from tdmpc2.errors import RenderError, UserError
from tdmpc2.memory import check_memory
from tdmpc2.ranges import MOST_ENVS, MOST_WORKERS, check_whole
from tdmpc2.tasks import TaskSet

Steps = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]

# The worker is started with `-c` and not with multiprocessing's spawn, which would run the program's main
# module again in each worker: that imports torch, and never ends where the main module has no guard.
# What asks a whole group of processes to stop is for this process to hear: it ends its workers itself.
_BOOTSTRAP = (
    "import signal, sys; asked = [n for n in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, n)]; "
    "[signal.signal(getattr(signal, n), signal.SIG_IGN) for n in asked]; "
    "sys.path[:] = sys.argv[2:]; from tdmpc2.envs.worker import main; main(sys.argv[1])"
)
_SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"), "1")
_EXIT_SECONDS = 1.0
_ENV_BYTES = 1 << 20
"""What the smallest simulation takes at the least."""


class EnvPoolError(UserError):
    """An environment of a pool raised or its worker died: names the worker, the slot and the task."""


class EnvPool:
    """N slots, each with one environment of any task of a set, stepped in parallel by W worker processes.

    Observations and actions are padded to the task set's widths O and A. Slot i belongs to worker i mod W, so
    that any run of consecutive slots is spread evenly; two halves of the slots can take turns:

        pool.step_async(actions_a, half_a)
        ...                                  # plan for half b meanwhile
        obs_a, reward_a, done_a = pool.step_wait()

    Several requests may be under way, for different slots; `step_wait` answers the oldest. With
    `num_workers=0` everything runs in the calling process, within `step_async`. An environment that raises or
    returns a number that is not finite, or a worker that dies, closes the pool and raises `EnvPoolError`; one that
    does not answer for `timeout` seconds does too.

    At most 10,000 slots and 1,024 workers, as many as the machine's memory holds. `frame_size` is (height, width) in
    pixels; frames are only drawn by a pool made with `render=True`.
    """

    def __init__(
        self,
        task_set: TaskSet,
        *,
        num_envs: int,
        num_workers: int,
        render: bool = False,
        frame_size: tuple[int, int] = (384, 384),
        timeout: float = 300.0,
    ) -> None:
        if num_envs < 1 or num_workers < 0:
            raise UserError(
                f"an EnvPool needs num_envs of 1 or more and num_workers of 0 or more, not {num_envs} and "
                f"{num_workers}."
            )
        check_whole("num_envs", num_envs, 1, MOST_ENVS)
        check_whole("num_workers", num_workers, 0, MOST_WORKERS)
        self.task_set = task_set
        self.num_envs = num_envs
        self.num_workers = min(num_workers, num_envs)
        layout = PoolLayout(
            num_envs, self.num_workers, task_set.obs_dim, task_set.action_dim, frame_size if render else None
        )
        check_memory(
            f"an EnvPool of num_envs={num_envs}{', with frames,' if render else ''}",
            layout.num_bytes() + num_envs * _ENV_BYTES,
            "run fewer at a time (num_envs=…)",
        )
        self._tasks: list[str | None] = [None] * num_envs
        self._playing = np.zeros(num_envs, dtype=bool)
        self._in_flight = np.zeros(num_envs, dtype=bool)
        self._pending: collections.deque[_Request] = collections.deque()
        self._closed = False
        self._render = render
        backend = choose_backend() if render else None
        self._workers: list[_Worker]
        if self.num_workers == 0:
            self._arrays = SharedArrays(layout, -1)
            self._workers = [_InProcess(Slots(layout, self._arrays, 0))]
        else:
            memory = anonymous_file(layout.num_bytes())
            try:
                self._arrays = SharedArrays(layout, memory)
                self._workers = [_Process(index, layout, memory, backend, timeout) for index in range(self.num_workers)]
            finally:
                os.close(memory)
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, os.getpid())

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; a second call does nothing."""
        self._closed = True
        self._pending.clear()
        self._finalizer()

    @property
    def tasks(self) -> tuple[str | None, ...]:
        """The task in each slot, None before its first reset."""
        return tuple(self._tasks)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process id of each worker; this process's own where there are none."""
        return tuple(worker.pid for worker in self._workers)

    def reset(self, slots: Sequence[int], tasks: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float32]:
        """Starts an episode of `tasks[i]` with `seeds[i]` in `slots[i]`; returns observations float32
        [len(slots), O].

        An environment is built anew only where the slot's task changes.
        """
        if not len(slots) == len(tasks) == len(seeds):
            raise UserError(
                f"reset got {len(slots)} slots, {len(tasks)} tasks and {len(seeds)} seeds; give one of each per slot."
            )
        index = self._checked_slots(slots)
        for task in tasks:
            self.task_set.index(task)
        work = {slot: (slot, task, int(seed)) for slot, task, seed in zip(index, tasks, seeds, strict=True)}
        for slot, task in zip(index, tasks, strict=True):
            self._tasks[slot] = task
        self._finish(self._send("reset", index, work))
        self._playing[index] = True
        return self._arrays.obs[index]

    def step(self, actions: NDArray[np.floating[Any]], slots: Sequence[int] | None = None) -> Steps:
        """`step_async` and `step_wait` in one; not while other steps are under way."""
        if self._pending:
            raise UserError("step() while steps are under way would answer those; call step_wait() for them first.")
        self.step_async(actions, slots)
        return self.step_wait()

    def step_async(self, actions: NDArray[np.floating[Any]], slots: Sequence[int] | None = None) -> None:
        """Starts one decision in `slots` (default: all) with actions float32 [len(slots), A], padded."""
        index = self._checked_slots(range(self.num_envs) if slots is None else slots)
        expected = (len(index), self.task_set.action_dim)
        if np.shape(actions) != expected:
            raise UserError(f"actions have shape {np.shape(actions)}, expected {expected} (slots, padded actions).")
        ended = [slot for slot in index if not self._playing[slot]]
        if ended:
            raise UserError(f"slots {ended} have no episode under way; reset them, or leave them out of `slots`.")
        broken = np.flatnonzero(np.isnan(actions).any(axis=1))
        if broken.size:
            slot = index[broken[0]]
            raise UserError(f"the action for slot {slot} ({self._tasks[slot]}) holds NaN: {actions[broken[0]]}.")
        self._arrays.action[index] = actions
        self._pending.append(self._send("step", index, {slot: slot for slot in index}))

    def step_wait(self) -> Steps:
        """Results of the oldest step under way, in the order of its slots.

        Observations float32 [n, O], rewards float32 [n], done bool [n] (terminated or truncated).
        """
        self._check_open()
        if not self._pending:
            raise UserError("step_wait() without step_async(): no step is under way.")
        index = self._finish(self._pending.popleft())
        done = self._arrays.done[index]
        self._playing[index] = ~done
        return self._arrays.obs[index], self._arrays.reward[index], done

    def render(self, slots: Sequence[int]) -> NDArray[np.uint8]:
        """The present frames of `slots`, uint8 [n, height, width, 3]."""
        if not self._render:
            raise RenderError("this pool draws no frames; make it with render=True.")
        index = self._checked_slots(slots)
        empty = [slot for slot in index if self._tasks[slot] is None]
        if empty:
            raise UserError(f"slots {empty} hold no environment yet; reset them first.")
        self._finish(self._send("render", index, {slot: slot for slot in index}))
        return self._arrays.frames[index]

    def decision_seconds(self, task: str) -> float:
        """Simulated seconds that one decision of `task` lasts; a slot must hold it now."""
        if task not in self._tasks:
            raise UserError(f"no slot of this pool holds '{task}'; reset one to it first.")
        return float(self._arrays.seconds[self._tasks.index(task)])

    def _check_open(self) -> None:
        if self._closed:
            raise EnvPoolError("the EnvPool is closed; make a new one.")

    def _checked_slots(self, slots: Sequence[int]) -> list[int]:
        self._check_open()
        index = [int(slot) for slot in slots]
        wrong = [slot for slot in index if not 0 <= slot < self.num_envs]
        if wrong or len(set(index)) != len(index):
            raise UserError(f"slots must be different numbers below {self.num_envs}, not {index}.")
        taken = [slot for slot in index if self._in_flight[slot]]
        if taken:
            raise UserError(f"slots {taken} are being stepped; call step_wait() before using them again.")
        return index

    def _send(self, kind: str, slots: list[int], work: dict[int, Any]) -> _Request:
        by_worker: dict[int, list[Any]] = {}
        for slot in slots:
            by_worker.setdefault(slot % len(self._workers), []).append(work[slot])
        tickets = []
        for worker, items in by_worker.items():
            try:
                tickets.append((worker, self._workers[worker].send(kind, items)))
            except OSError:
                self._fail(worker, None)
        self._in_flight[slots] = True
        return _Request(slots, tickets)

    def _finish(self, request: _Request) -> list[int]:
        for worker, ticket in request.tickets:
            try:
                failure = self._workers[worker].wait(ticket)
            except (OSError, EOFError):
                self._fail(worker, None)
            if failure is not None:
                self._fail(worker, failure)
        self._in_flight[request.slots] = False
        return request.slots

    def _fail(self, worker: int, failure: Failure | None) -> NoReturn:
        """Closes the pool and raises what is known about a failed worker."""
        if failure is not None:
            slot, task, reason = failure.slot, failure.task, failure.message
        else:
            slot = int(self._arrays.busy[worker])
            task = self._tasks[slot] or "" if slot >= 0 else ""
            reason = self._workers[worker].epitaph()
        self.close()
        where = f"slot {slot} ({task})" if slot >= 0 else "no slot at work"
        error = EnvPoolError(f"worker {worker} of the EnvPool, {where}: {reason}")
        if failure is not None:
            error.add_note(f"In the worker:\n{failure.details}")
        raise error


@dataclass(frozen=True)
class _Request:
    """Slots of a request and, for each worker that takes part in it, the number of its answer."""

    slots: list[int]
    tickets: list[tuple[int, int]]


class _Worker(Protocol):
    """Where slots live. Requests are answered in their order, so the number of a request is its ticket."""

    pid: int

    def send(self, kind: str, work: list[Any]) -> int: ...

    def wait(self, ticket: int) -> Failure | None: ...

    def epitaph(self) -> str: ...

    def hang_up(self) -> None: ...

    def end(self, deadline: float) -> None: ...


class _InProcess:
    """The slots of a pool without worker processes."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._sent = 0
        self._failure: Failure | None = None
        self.pid = os.getpid()

    def send(self, kind: str, work: list[Any]) -> int:
        self._failure = self._failure or self._slots.run(kind, work)
        self._sent += 1
        return self._sent

    def wait(self, ticket: int) -> Failure | None:
        return self._failure

    def epitaph(self) -> str:
        return "ended"

    def hang_up(self) -> None:
        self._slots.close()

    def end(self, deadline: float) -> None:
        pass


class _Process:
    """A worker process and this process's end of the connection to it."""

    def __init__(self, index: int, layout: PoolLayout, memory: int, backend: str | None, timeout: float) -> None:
        self._timeout = timeout
        self._sent = self._answered = 0
        self._connection, theirs = multiprocessing.Pipe()
        environment = {**os.environ, **_SINGLE_THREADED}
        if backend is not None:
            environment["MUJOCO_GL"] = backend
        with theirs:
            post = WorkerPost(theirs.fileno(), memory, index, os.getpid(), layout)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, post.to_json(), *sys.path],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
            )
        self.pid = self._process.pid

    def send(self, kind: str, work: list[Any]) -> int:
        self._connection.send((kind, work))
        self._sent += 1
        return self._sent

    def wait(self, ticket: int) -> Failure | None:
        while self._answered < ticket:
            if not self._connection.poll(self._timeout):
                raise TimeoutError
            failure: Failure | None = self._connection.recv()
            self._answered += 1
            if failure is not None:
                return failure
        return None

    def epitaph(self) -> str:
        """Why this worker no longer answers."""
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"its process gave no answer within {self._timeout:g} s and was ended."
        if code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed by {name}" + " (out of memory?)" * (name == "SIGKILL") + "."
        return f"its process ended with code {code}; its own message, if any, is on stderr."

    def hang_up(self) -> None:
        self._connection.close()

    def end(self, deadline: float) -> None:
        try:
            self._process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _shut_down(workers: Sequence[_Worker], owner: int) -> None:
    """Ends all workers, by force those that do not end within a second; nothing in a fork of the owner."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + _EXIT_SECONDS
    for worker in workers:
        worker.end(deadline)
