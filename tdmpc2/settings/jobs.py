"""The jobs of a sweep, in this process or in others: none of them ends the others, and each failure is told.

Hydra's basic launcher runs one job after the other in this process. Others (joblib, submitit) pickle `Jobs` and run it
in worker processes, perhaps on other machines; a `Record`, a folder beside the sweep's runs, then carries what the jobs
have to tell the command that started them, and its wish that they stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tdmpc2.allocation import keep_freed_memory
from tdmpc2.console import lenient
from tdmpc2.errors import UserError, as_user_error, first_line, printable
from tdmpc2.fileio import atomic_write_text
from tdmpc2.places import PACKAGE
from tdmpc2.settings.checks import check_known, one_line
from tdmpc2.settings.schema import register_schemas

_ASK_FREQ = 0.5
"""Seconds between looks into a sweep's record."""
_ENDED, _FAILED, _BEGAN = "ended", "failed", "began"


class Record:
    """What the jobs of one sweep tell each other and the command that started them, as files of a folder.

    A file `job-<number>` holds a job's state (began, ended or failed) and in further lines what is told of it. The
    command removes the folder at its end; jobs that outlive it then tell nothing more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, job: int, state: str, text: str = "") -> None:
        with contextlib.suppress(UserError):
            if self.folder.is_dir():
                atomic_write_text(self.folder / f"job-{job:05d}", f"{state}\n{text}")

    def read(self) -> dict[int, tuple[str, str]]:
        """State and text of every job that has begun, by number."""
        found: dict[int, tuple[str, str]] = {}
        for path in sorted(self.folder.glob("job-*")):
            with contextlib.suppress(FileNotFoundError):
                state, _, text = path.read_text(encoding="utf-8").partition("\n")
                found[int(path.name.removeprefix("job-"))] = state, text
        return found

    def claim(self, job: int, folder: str) -> bool:
        """Whether a run folder is this job's: the first that asks for it has it, also when it is run again."""
        path = self.folder / f"claim-{hashlib.sha256(folder.encode(errors='surrogateescape')).hexdigest()[:24]}"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(str(job))
        except FileExistsError:
            return path.read_text(encoding="utf-8") == str(job)
        except FileNotFoundError:  # the sweep's command is gone; the run's own lock remains
            return True
        return True

    def ask_to_stop(self) -> None:
        """Asks every job to stop after its update, and those to come not to begin."""
        with contextlib.suppress(OSError):
            (self.folder / "stop").touch()

    @property
    def asked_to_stop(self) -> bool:
        return (self.folder / "stop").exists()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Jobs:
    """What Hydra calls for every job: keeps a job's error from Hydra, which would add lines of its own.

    Args:
        program: whose keys a job may have.
        function: does a job; what it returns is for Hydra's sweepers.
        varied: keys that have several values in this sweep: they name a job.
    """

    current: Jobs | None = None
    """Those of this process's command line, for the callback that Hydra makes."""

    def __init__(
        self, program: str, function: Callable[[DictConfig], float | None], varied: frozenset[str] = frozenset()
    ) -> None:
        self._program = program
        self._function = function
        self._varied = varied
        self._error: Exception | None = None
        self._failed: list[str] = []
        self._folders: set[str] = set()
        self._count = 0
        self._launcher = ""
        self._record: Record | None = None
        self._watch: _Watch | None = None

    # -- within a job --------------------------------------------------------------------------------------------------

    def __call__(self, config: DictConfig) -> float | None:
        self._count += 1
        if self._record is not None and self._watch is None:
            return self._elsewhere(self._record, config)
        if self._record is not None and self._record.asked_to_stop:  # joblib with n_jobs=1 runs jobs in this process
            raise KeyboardInterrupt
        try:
            return self._run(config)
        except Exception as raised:
            error = self._cleared_up(raised)
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                self._error = error
                return None
            self._failed.append(_told(_name(self._varied), error))
            print(f"error: {self._failed[-1]}", file=sys.stderr)
        return None

    def _run(self, config: DictConfig) -> float | None:
        check_known(config, self._program)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            self._claim(HydraConfig.get().runtime.output_dir)
        return self._function(config)

    def _claim(self, folder: str) -> None:
        """Refuses a folder of a sweep to all but one job; programs without folders for jobs run in the working one."""
        if self._record is not None:
            taken = not self._record.claim(HydraConfig.get().job.num, folder)
        else:
            taken = folder in self._folders
            self._folders.add(folder)
        if taken and Path(folder) != Path.cwd():
            raise UserError(f"{folder}: another job of this sweep has this folder; vary exp_name or task.name with it.")

    def _cleared_up(self, raised: Exception) -> Exception:
        """The error to tell, after the folder that Hydra made for the job is gone where nothing is in it."""
        remove_empty(Path(HydraConfig.get().runtime.output_dir))
        if isinstance(raised, OmegaConfBaseException):  # a value that needs another one that is not there
            return UserError(one_line(raised))
        return raised

    # -- within a worker process ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register_schemas()  # a worker composes a job's configuration before it calls this
        keep_freed_memory()

    def _elsewhere(self, record: Record, config: DictConfig) -> float | None:
        number, name = HydraConfig.get().job.num, _name(self._varied)
        if record.asked_to_stop:
            remove_empty(Path(HydraConfig.get().runtime.output_dir))
            return None
        with self._as_worker(record, number):
            record.write(number, _BEGAN, name)
            try:
                result = self._run(config)
            except Exception as raised:
                told = _told(name, self._cleared_up(raised))
                if not _shares_console(self._launcher):  # a queue's log of the job
                    print(f"error: {told}", file=sys.stderr)
            except KeyboardInterrupt:
                told = f"{name}: interrupted"
            except SystemExit as ended:
                if ended.code != 130:  # submitit puts the job into its queue again
                    raise
                told = f"{name}: interrupted"
            else:
                record.write(number, _ENDED)
                return result
            record.write(number, _FAILED, told)
        return None

    @contextlib.contextmanager
    def _as_worker(self, record: Record, number: int) -> Iterator[None]:
        """Names a job's lines on a console that others share, and lets it stop when the sweep's command asks."""
        if _shares_console(self._launcher):
            sys.stdout = lenient(1, sys.stdout, f"job {number}: ")
            sys.stderr = lenient(2, sys.stderr, f"job {number}: ")
        if _on_this_machine(self._launcher):
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the command alone, which asks the jobs to stop once
        ended = threading.Event()

        def listen() -> None:
            while not ended.wait(_ASK_FREQ):
                if record.asked_to_stop:
                    os.kill(os.getpid(), signal.SIGINT)
                    return

        listener = threading.Thread(target=listen, daemon=True)
        if _on_this_machine(self._launcher):
            listener.start()
        try:
            yield
        finally:
            ended.set()

    # -- in the command that starts the sweep --------------------------------------------------------------------------

    def begin(self, launcher: str, sweep_dir: Path) -> None:
        """Makes ready for jobs in other processes, where the launcher (the path of its class) starts such."""
        if launcher.endswith(".BasicLauncher"):
            return
        self._launcher = launcher
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        found_in = str(PACKAGE.parent)
        if found_in not in paths:  # a worker imports this package, installed or not
            os.environ["PYTHONPATH"] = os.pathsep.join([found_in, *filter(None, paths)])
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # jobs share the machine's cores; torch reads it when it loads
        folder = sweep_dir.absolute() / f".jobs-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        self._record = Record(folder)
        self._watch = _Watch(self._record, stops_jobs=_on_this_machine(launcher))

    def finish(self, error: BaseException | None = None) -> None:
        """Raises what a single run ended with, or a `UserError` that names a sweep's failed jobs.

        Args:
            error: what Hydra or the launcher ended with.
        """
        if self._error is not None:
            raise self._error
        lost = ""
        if self._record is not None and self._watch is not None:
            found = self._record.read()
            self._watch.close()
            self._record.remove()
            if self._watch.stopping or isinstance(error, KeyboardInterrupt):
                if not _on_this_machine(self._launcher):
                    print("jobs that were submitted go on; the queue's own commands end them", file=sys.stderr)
                raise KeyboardInterrupt
            self._count += len(found)
            for state, text in found.values():
                if state == _FAILED:
                    self._failed.append(text)
                elif state == _BEGAN and error is not None:
                    self._failed.append(f"{text}: has not ended")
            if isinstance(error, Exception) and as_user_error(error) is None:
                lost = f"the launcher failed: {type(error).__name__}: {printable(first_line(error))}"
        if error is not None and not lost:
            raise error
        if self._failed or lost:
            print("".join(f"{line}\n" for line in self._failed), end="", file=sys.stderr)
            failed = f"{len(self._failed)} of {self._count} jobs failed"
            told = [lost] if lost else []
            told += [f"{failed}; the same command goes on with them."] if self._failed else []
            raise UserError("; ".join(told))


class _Watch:
    """Tells the failures of jobs in other processes when they come, and asks the jobs to stop when a signal comes."""

    def __init__(self, record: Record, stops_jobs: bool) -> None:
        self.stopping = False
        self._record = record
        self._told: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._handlers: dict[int, Any] = {}
        if stops_jobs and threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._on_signal)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._tell()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt  # asked twice: do not wait for the jobs
        self.stopping = True
        self._record.ask_to_stop()

    def _look(self) -> None:
        while not self._ended.wait(_ASK_FREQ):
            self._tell()

    def _tell(self) -> None:
        for job, (state, text) in self._record.read().items():
            if state == _FAILED and job not in self._told:
                self._told.add(job)
                if not self.stopping:
                    print(f"error: {text}", file=sys.stderr)


class OnSweep(Callback):
    """Tells `Jobs` how Hydra is to launch them: `hydra_entry` adds it to every sweep."""

    def on_multirun_start(self, config: DictConfig, **others: Any) -> None:
        if Jobs.current is not None:
            Jobs.current.begin(config.hydra.launcher._target_, Path(config.hydra.sweep.dir))


def _shares_console(launcher: str) -> bool:
    """Whether jobs write to the console of the command; submitit's write into files of their own."""
    return ".hydra_submitit_launcher." not in launcher


def _on_this_machine(launcher: str) -> bool:
    """Whether jobs end with their command; those in a queue outlive it."""
    return not launcher.endswith(".SlurmLauncher")


def _name(varied: frozenset[str]) -> str:
    """The job that runs, by its number and what the sweep varies."""
    chosen = [override for override in HydraConfig.get().overrides.task if override.partition("=")[0] in varied]
    return printable(f"job {HydraConfig.get().job.num} ({' '.join(chosen)})", limit=2_000)


def _told(name: str, error: Exception) -> str:
    """What a failed job ended with, in one line; what no user can cause shows its traceback as well."""
    told = as_user_error(error)
    if told is None:
        traceback.print_exception(error)
    return printable(f"{name}: {told or type(error).__name__}", limit=2_000)


def remove_empty(folder: Path) -> None:
    """Removes the folder that Hydra made for a job that failed before it wrote anything, and empty ones above it."""
    here = Path.cwd()
    while folder not in (here, *here.parents):
        try:
            folder.rmdir()
        except OSError:  # it holds something, or is not this process's to remove
            return
        folder = folder.parent
