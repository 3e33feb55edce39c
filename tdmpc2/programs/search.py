"""Searches for the value of a numeric key that gives the best final score, by Optuna, one trial after the other.

    python scripts/search.py --low 0.05 --high 1 --trials 12 --seeds 1,2,3 scale=cpu teacher=large final_episodes=2

A trial is a value; its runs, one a seed, are those of tdmpc2/train.py with all other keys as given, each in
logs/<task>/<exp_name>/<key>-<value>/seed<n>. The same command goes on after an interruption, and beside a search that
runs it takes other trials. Exit status: 0 when the trials are done, 2 for bad input, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock
from omegaconf import DictConfig

from tdmpc2.errors import UserError, printable
from tdmpc2.evaluation.results import load_json
from tdmpc2.fileio import safe_name, write_error
from tdmpc2.locks import FolderLock, InUse
from tdmpc2.places import PACKAGE
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.tables import format_table
from tdmpc2.settings.convert import train_settings
from tdmpc2.settings.entry import composed
from tdmpc2.settings.schema import SCHEMAS, schema_keys
from tdmpc2.training.ending import EVALUATION_NAME

TRAIN = PACKAGE / "train.py"
_LOCK = "search.lock"
_MOST_FAILED = 3
"""Trials that may fail one after the other before a search gives up."""
_STARTS = (0.5, 0.1, 0.9, 0.3, 0.7)
"""Where between the bounds the first values lie: single random draws of so few would leave gaps."""
_SHOWN = 10
INTERRUPTED = "interrupted: the same command goes on with the search"


@dataclass(frozen=True)
class Search:
    """What is searched for; a storage file holds the trials of one such search.

    Attributes:
        key: of tdmpc2/train.py, a number.
        low, high: bounds of its value, included.
        log: whether values are drawn by their logarithm.
        seeds: of a trial's runs, whose scores are averaged.
        prior: whether the score is that of the policy prior alone, not planned.
        overrides: all other keys, as on the command line of tdmpc2/train.py.
    """

    key: str
    low: float
    high: float
    log: bool
    seeds: tuple[int, ...]
    prior: bool
    overrides: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"--low {self.low:g} must be below --high {self.high:g}.")
        if self.log and self.low <= 0:
            raise UserError(f"--log needs bounds above 0, not --low {self.low:g}.")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise UserError(f"--seeds {','.join(map(str, self.seeds))}: give each seed once.")

    @property
    def whole(self) -> bool:
        """Whether the key's values are whole numbers."""
        for name, declared, _ in schema_keys(SCHEMAS["train"]):
            if name == self.key:
                kinds = set(get_args(declared.type)) or {declared.type}
                if kinds <= {int, type(None)}:
                    return True
                if float in kinds:
                    return False
                raise UserError(f"--key {self.key} is not a number; choose a numeric key of tdmpc2/train.py.")
        raise UserError(f"--key {printable(self.key)}: tdmpc2/train.py has no such key; its --help shows all.")

    def between(self, share: float) -> float:
        """The value at a share (0 to 1) of the way from the low bound to the high one."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return min(max(float(_text(value, self.whole)), self.low), self.high)


def main(arguments: list[str] | None = None) -> None:
    search, trials, storage = _asked(sys.argv[1:] if arguments is None else arguments)
    for bound in (search.low, search.high):
        config = composed("train", _overrides(search, bound, search.seeds[0]))
        train_settings(config, Path())  # says now what each run would say
    if not config.final_episodes:
        raise UserError("final_episodes is 0, so that runs end without a score: give final_episodes=2, or scale=….")
    folder = Path("logs") / config.task.name / config.exp_name
    usual = _default(composed("train", search.overrides), search.key)
    book = _Book(search, storage or folder / "search.journal", folder, usual)
    failed = 0
    while failed < _MOST_FAILED:
        trial = book.next_trial(trials)
        if trial is None:
            print(book.table())
            return
        score = book.run(trial)
        failed = failed + 1 if score is None else 0
    raise UserError(f"{_MOST_FAILED} trials failed one after the other, as told above; the search stops here.")


def _asked(arguments: Sequence[str]) -> tuple[Search, int, Path | None]:
    parser = ProgramParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="All others are keys of tdmpc2/train.py: scale=cpu teacher=large exp_name=search …",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--key", default="d_coef", help="numeric key whose value is searched")
    parser.add_argument("--low", type=float, default=0.05, help="its least value")
    parser.add_argument("--high", type=float, default=1.0, help="its greatest value")
    parser.add_argument("--log", action="store_true", help="draw values by their logarithm")
    parser.add_argument("--trials", type=int, default=12, help="trials in all, earlier ones included")
    parser.add_argument("--seeds", default="1", help="seeds of a trial's runs, whose scores are averaged, as 1,2,3")
    parser.add_argument("--prior", action="store_true", help="score the policy prior alone, not planned")
    parser.add_argument("--storage", metavar="FILE", help="file of the trials (in the experiment's folder)")
    options, overrides = parser.parse_known_args(arguments)
    for given in overrides:
        key, equals, _ = given.partition("=")
        if not equals or given.startswith("-"):
            parser.error(f"{given} is neither an option nor a key of tdmpc2/train.py")
        if key in (options.key, "seed", "resume", "hydra.run.dir"):
            parser.error(f"{given}: the search sets this key itself")
    if options.trials < 1:
        parser.error(f"--trials must be at least 1, not {options.trials}")
    try:
        seeds = tuple(map(int, options.seeds.split(",")))
    except ValueError:
        parser.error(f"--seeds must be whole numbers as 1,2,3, not {options.seeds}")
    search = Search(options.key, options.low, options.high, options.log, seeds, options.prior, tuple(sorted(overrides)))
    if search.whole and not (search.low.is_integer() and search.high.is_integer()):
        parser.error(f"--low and --high must be whole numbers, as {search.key} is")
    return search, options.trials, None if options.storage is None else Path(options.storage)


def _default(config: DictConfig, key: str) -> float | None:
    """The value that the key has without the search, where the experiment gives one: the first to be tried."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _overrides(search: Search, value: float, seed: int, run_dir: Path | None = None) -> list[str]:
    given = [*search.overrides, f"{search.key}={_text(value, search.whole)}", f"seed={seed}", "resume=auto"]
    return given if run_dir is None else [*given, f"hydra.run.dir={run_dir}"]


def _text(value: float, whole: bool) -> str:
    return f"{value:.0f}" if whole else f"{value:.3g}"


class _Book:
    """The trials of a search: a journal file, which several processes may append to, and the folders of their runs.

    A trial that runs holds its folder's lock, which the system frees when its process ends, however it ends: a trial
    in the file that runs without it was interrupted, and is taken up where its runs stand.
    """

    def __init__(self, search: Search, path: Path, folder: Path, first: float | None) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            install = 'pip install optuna (in a clone: pip install -e ".[search]")'
            raise UserError(f"optuna is not installed: {install}.") from None
        self._optuna = optuna
        self._search = search
        self._folder = folder
        self._held: dict[int, FolderLock] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._turn = FileLock(path.with_name(f"{path.name}.turn"), fallback_to_soft=False)
            with self._turn:
                _mend(path)
                storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
                self._study = optuna.create_study(
                    storage=storage, study_name="search", direction="maximize", load_if_exists=True
                )
                self._check(path, first)
        except OSError as error:
            raise write_error(path, error) from error
        except (ValueError, KeyError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is damaged ({printable(error)}): move it away; finished runs are kept.") from error

    def _check(self, path: Path, first: float | None) -> None:
        """Writes what is searched into a new file; a `UserError` where the file holds another search."""
        asked = json.loads(json.dumps(asdict(self._search)))
        held = self._study.user_attrs.get("search")
        if held is None:
            self._study.set_user_attr("search", asked)
            begin = [self._search.between(share) for share in _STARTS]
            if first is not None and self._search.low <= first <= self._search.high:
                begin.insert(0, first)
            for value in begin:
                self._study.enqueue_trial({self._search.key: int(value) if self._search.whole else value})
            return
        other = [name for name in asked if held.get(name) != asked[name]]
        if other:
            raise UserError(
                f"{path} holds another search, of {other[0]} {held.get(other[0])}, not {asked[other[0]]}: "
                "choose another exp_name or --storage."
            )

    def next_trial(self, most: int) -> Any | None:
        """A trial that was interrupted, or a new one; None when there are `most`. Its folder is locked.

        Returns:
            A frozen trial of Optuna's, which has its value.
        """
        states = self._optuna.trial.TrialState
        with self._turn:
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == states.RUNNING and self._search.key not in trial.params:
                    self._study.tell(trial.number, state=states.FAIL)  # cut off before it had a value
                elif trial.state == states.RUNNING and self._locked(trial):
                    print(f"trial {trial.number} was interrupted, and goes on", flush=True)
                    return trial
            begun = [t for t in trials if t.state != states.WAITING and self._search.key in t.params]
            if len(begun) >= most:
                return None
            # A sampler with the same seed would draw the same values again after an interruption.
            self._study.sampler = self._optuna.samplers.TPESampler(n_startup_trials=len(_STARTS), seed=len(trials))
            asked = self._study.ask()
            if self._search.whole:
                asked.suggest_int(self._search.key, int(self._search.low), int(self._search.high), log=self._search.log)
            else:
                asked.suggest_float(self._search.key, self._search.low, self._search.high, log=self._search.log)
            trial = self._study.get_trials(deepcopy=False)[asked.number]
            self._locked(trial)
            return trial

    def _value(self, trial: Any) -> float:
        """A trial's value as its runs get it: of three digits, so that folders have names to be read."""
        return float(_text(trial.params[self._search.key], self._search.whole))

    def _folder_of(self, trial: Any) -> Path:
        return self._folder / safe_name(f"{self._search.key}-{_text(self._value(trial), self._search.whole)}")

    def _locked(self, trial: Any) -> bool:
        lock = FolderLock(self._folder_of(trial), _LOCK, advice="choose a folder elsewhere to start from")
        try:
            lock.acquire()
        except InUse:
            return False
        self._held[trial.number] = lock
        return True

    def run(self, trial: Any) -> float | None:
        """Does a trial's runs and keeps their mean score; None where one failed.

        Raises:
            KeyboardInterrupt: when a signal came; the trial stays as one to go on with.
        """
        while trial.number not in self._held and not self._locked(trial):
            time.sleep(1)  # another trial has this value too, after rounding: its runs are this one's
        states = self._optuna.trial.TrialState
        try:
            scores = [self._score(trial, seed) for seed in self._search.seeds]
            good = [score for score in scores if score is not None]
            if len(good) < len(scores):
                self._study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
                print(f"trial {trial.number}: {self._search.key} {self._value(trial):g} failed", flush=True)
                return None
            mean = sum(good) / len(good)
            self._study.tell(trial.number, mean, skip_if_finished=True)
        finally:
            self._held.pop(trial.number).release()
        best = self._study.best_trial
        of_seeds = f" ({', '.join(f'{score:.2f}' for score in good)})" if len(good) > 1 else ""
        print(
            f"trial {trial.number}: {self._search.key} {self._value(trial):g} scores {mean:.2f}{of_seeds}; "
            f"best so far {self._value(best):g} with {best.value:.2f}",
            flush=True,
        )
        return mean

    def _score(self, trial: Any, seed: int) -> float | None:
        """Of one run, which is done as far as it is not yet; None where it failed."""
        run_dir = self._folder_of(trial) / f"seed{seed}"
        name = f"{EVALUATION_NAME.removesuffix('.json')}-prior.json" if self._search.prior else EVALUATION_NAME
        command = [sys.executable, str(TRAIN), *_overrides(self._search, self._value(trial), seed, run_dir)]
        status = _trained(command, self._held[trial.number].descriptor)
        if status == 130:
            raise KeyboardInterrupt
        if status:
            return None
        score = load_json(run_dir / name).score().value
        return score if math.isfinite(score) else None

    def table(self) -> str:
        """The best trials, and the command that trains with the best value."""
        states = self._optuna.trial.TrialState
        trials = self._study.get_trials(deepcopy=False)
        done: list[Any] = [t for t in trials if t.value is not None]
        counts = ((states.FAIL, "failed"), (states.RUNNING, "run elsewhere"))
        others = "".join(
            f"; {count} {word}" for state, word in counts if (count := sum(t.state == state for t in trials))
        )
        done.sort(key=lambda trial: -trial.value)
        if not done:
            return f"no trial has a score{others}"
        rows = [[f"{self._value(t):g}", f"{t.value:.2f}", str(t.number)] for t in done[:_SHOWN]]
        what = "score, prior alone" if self._search.prior else "score"
        text = format_table([self._search.key, what, "trial"], rows, align="rrr")
        best = shlex.join(["python", "tdmpc2/train.py", *_overrides(self._search, self._value(done[0]), 1)[:-2]])
        return f"{text}\n{len(done)} trials, {len(self._search.seeds)} seeds each{others}; the best: {best}"


def _mend(path: Path) -> None:
    """Cuts off a last line that a machine which went down left without its end: the journal would not be read."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _trained(command: Sequence[str], lock: int | None) -> int:
    """Runs a training program to its end; it holds the trial's lock too, should it outlive this process.

    Raises:
        KeyboardInterrupt: when a signal asked this one to stop, after the run has stopped too, with its state written.
    """
    asked = False
    with _own_group(command, lock) as process:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                asked = True
                process.send_signal(signal.SIGINT)
    if asked:
        raise KeyboardInterrupt
    return status


@contextlib.contextmanager
def _own_group(command: Sequence[str], lock: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that a terminal's Ctrl-C does not reach: it would come twice, and not wait for the update."""
    inherited = () if lock is None else (lock,)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, pass_fds=inherited)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
