"""Imports published dataset files or other stores into a memory-mapped episode store, or prints what a store holds.

python scripts/import_data.py data/raw/mt30/chunk_*.pt --store data/mt30 [--dtype float16]
python scripts/import_data.py logs/*/replay --store data/own --task mt30
python scripts/import_data.py --store data/mt30 --summary

An interrupted import is resumed by running it again: what is in the store already is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from tdmpc2.data.importing import FileProgress, import_files, store_to_fill, summary
from tdmpc2.data.store import DTYPES, EpisodeStore
from tdmpc2.fileio import human_bytes
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.progress import Progress
from tdmpc2.tasks import task_set


def import_visibly(files: list[Path], store: EpisodeStore) -> None:
    """Imports files with one line of progress for each."""
    with contextlib.ExitStack() as line:
        shown: Progress | None = None

        def show(state: FileProgress) -> None:
            nonlocal shown
            name = f"[{state.file}/{state.files}] {state.path.name}"
            if state.skipped:
                print(f"{name}: already in the store, skipped", file=sys.stderr)
                return
            if shown is None:
                shown = line.enter_context(Progress(state.total_episodes, name, "episodes"))
                shown.update(state.episodes)  # of an import that was interrupted
            shown.update(state.episodes - shown.done)
            if shown.done == shown.total:
                line.close()
                shown = None

        import_files(files, store, show)


INTERRUPTED = "interrupted; run the same command again to go on"


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="SOURCE", help="published files (.pt), or stores")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the store's folder")
    parser.add_argument(
        "--task",
        default="mt30",
        help="task set of the store, whose order files' ids follow (mt30), or names of tasks with commas between",
    )
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        help="of a new store: float32, exact (the default), or float16, half the size and rounded to 11 bits",
    )
    parser.add_argument("--summary", action="store_true", help="only print what the store holds")
    parser.add_argument("--verify", action="store_true", help="read the store back and compare its checksums")
    arguments = parser.parse_args()
    if not arguments.files and not (arguments.summary or arguments.verify):
        parser.error("name at least one SOURCE, or --summary or --verify")
    if arguments.files and arguments.summary:
        parser.error("--summary takes no SOURCE; the summary is printed after every import anyway")
    if arguments.files:
        names = arguments.task.split(",")
        tasks = task_set(arguments.task) if len(names) == 1 else task_set("+".join(names), names)
        with store_to_fill(arguments.store, tasks, dtype=arguments.dtype) as store:
            import_visibly(arguments.files, store)
    else:
        store = EpisodeStore.open(arguments.store)
    print(summary(store))
    if arguments.verify:
        print(f"verified {human_bytes(store.verify())}: every checksum is right")
