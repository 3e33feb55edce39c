"""Training runs in processes that can be killed at any moment, without each of them importing torch first.

As a program it reads one JSON job a line, runs it in a fork of itself, and prints the fork's id and then its exit
code. `CrashServer` talks to such a process; `StartedRun` is one of its forks.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parent
_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


class StartedRun:
    """A training run in a process of its own."""

    def __init__(self, server: CrashServer, pid: int, log: Path) -> None:
        self._server = server
        self._log = log
        self.pid = pid

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """Its exit code (minus the signal that ended it) and all it printed."""
        code = self._server.answer("ended")
        self._server.under_way = None
        return code, self._log.read_text(errors="replace")


class CrashServer:
    """Starts training runs, one at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{SUPPORT.parents[1]}{os.pathsep}{SUPPORT}", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.under_way: StartedRun | None = None
        self.answer("ready")

    def answer(self, kind: str) -> int:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        assert len(words) == 2 and words[0] == kind, f"the crash server said {words}, expected {kind}"
        return int(words[1])

    def end_run(self) -> None:
        """Ends a run that a failed test left behind."""
        if self.under_way is not None:
            self.under_way.kill(signal.SIGKILL)
            self.under_way.wait()

    def start(
        self, run_dir: Path, *keys: str, log: Path, kill_at: int | None = None, file_limit: int | None = None
    ) -> StartedRun:
        """Starts a run of `keys`.

        Args:
            run_dir: its folder.
            keys: overrides of the program's configuration.
            log: file for what it prints.
            kill_at: SIGKILL comes just before this file operation in the run's folder, counted from 0.
            file_limit: no file may grow beyond this many bytes, as on a full disk.
        """
        self.end_run()
        job = {"run_dir": str(run_dir), "keys": keys, "log": str(log), "kill_at": kill_at, "file_limit": file_limit}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self.under_way = StartedRun(self, self.answer("started"), log)
        return self.under_way

    def close(self) -> None:
        self.end_run()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


class _FileEvents:
    """Counts file operations in a folder, and ends this process by SIGKILL just before one of them."""

    def __init__(self, folder: str, kill_at: int | None) -> None:
        self._folder = folder
        self._kill_at = kill_at
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FILE_EVENTS and isinstance(arguments[0], str) and arguments[0].startswith(self._folder):
            if self.count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def _run(job: dict[str, Any]) -> int:
    from run_fixtures import TINY, composed

    from tdmpc2.errors import run_program
    from tdmpc2.settings.convert import teacher_of, train_settings
    from tdmpc2.training import train

    config = composed("train", *TINY, "logging.console=false", "device=cpu", *job["keys"])
    settings = train_settings(config, Path(job["run_dir"]))
    settings = replace(settings, evaluation=replace(settings.evaluation, mpc=False))  # planning is slow
    teacher = teacher_of(config, settings.task_set, settings.device)
    if job["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], resource.RLIM_INFINITY))
    events = _FileEvents(job["run_dir"], job["kill_at"])
    sys.addaudithook(events)

    def main() -> None:
        result = train(settings, teacher)
        print(f"file operations: {events.count}")
        raise SystemExit(130 if result.interrupted else 0)

    try:
        run_program(main)
    except SystemExit as end:
        return int(end.code or 0)
    return 1


def _serve() -> None:
    # All that a run needs is imported before the first fork.
    from run_fixtures import TINY, composed

    composed("train", *TINY, "data_dir=none")
    print("ready", os.getpid(), flush=True)
    last = None
    for line in sys.stdin:
        if last is not None:
            os.waitpid(last, 0)  # only now: until then no other process could get its id, and a signal sent to it
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with Path(job["log"]).open("w") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    code = _run(job)
            except BaseException:  # whatever it is, this fork must end here
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print("started", pid, flush=True)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print("ended", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
        last = pid


if __name__ == "__main__":
    _serve()
