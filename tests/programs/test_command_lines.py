"""Whatever is typed, a program does it or says in one line why not: no traceback, nothing left behind."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_lines import PROGRAMS, WORKING_SECONDS, ProgramServer, Things, fault, random_command
from data_fixtures import make_episodes, published_tensors, save_published
from run_fixtures import TINY, store_path, tiny_run

from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine
from tdmpc2.tasks import task_set

SEED = int(os.environ.get("TDMPC2_TEST_SEED", "20260711"))
MANY = int(os.environ.get("TDMPC2_COMMAND_LINES", "1000"))


@pytest.fixture(scope="module")
def server() -> Iterator[ProgramServer]:
    started = ProgramServer()
    yield started
    started.close()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    folder = tmp_path_factory.mktemp("things")
    tiny_run(folder / "run", "steps=1")
    results = folder / "evaluation.json"
    episodes = (EpisodeResult("pendulum-spin", 0, 3, 100.0, 500),)
    machine = Machine("a processor", 2, "cpu")
    EvaluationResult("one", "duo", ("pendulum-spin",), episodes, {}, machine, 1.0, 500).save_json(results)
    published = folder / "chunk_0.pt"
    save_published(published, published_tensors(make_episodes(task_set("mt30"), [0, 7, 29], 501, 24, 6)))
    final = folder / "run" / "checkpoints" / "final.safetensors"
    store = shutil.copytree(store_path(), folder / "store")  # a line may add to it
    return Things(store, final, results, published, TINY)


def try_many(server: ProgramServer, things: Things, folder: Path, count: int, seed: int) -> Counter[str]:
    """Runs so many command lines; fails with all that ended wrongly, each with its number."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(count):
        program = PROGRAMS[number % len(PROGRAMS)]
        arguments = random_command(chance, program, things)
        place = folder / f"line{number}"
        ended = server.run(place, program, arguments, WORKING_SECONDS)
        ends[f"exit code {ended.code}"] += 1
        wrong = fault(program, arguments, ended)
        if wrong is not None:
            shown = (ended.errors or ended.output)[-2_000:]
            faults.append(f"line {number}: {program} {arguments!r}: {wrong}\n{shown}")
        shutil.rmtree(place, ignore_errors=True)
    print(f"seed {seed}: {dict(ends)}")
    assert not faults, f"{len(faults)} of {count} (seed {seed}):\n" + "\n".join(faults)
    return ends


def test_random_command_lines(server: ProgramServer, things: Things, tmp_path: Path) -> None:
    ends = try_many(server, things, tmp_path, 110, SEED)
    assert ends["exit code 0"] >= 5 and ends["exit code 2"] >= 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_command_lines(server: ProgramServer, things: Things, tmp_path: Path) -> None:
    try_many(server, things, tmp_path, MANY, SEED + 1)
