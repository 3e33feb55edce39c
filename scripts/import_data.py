"""Imports published dataset files into a memory-mapped episode store, or prints what a store holds.

python scripts/import_data.py data/raw/mt30/chunk_*.pt --store data/mt30
python scripts/import_data.py --store data/mt30 --summary

An interrupted import is resumed by running it again: files that are already in the store are skipped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tdmpc2.data.importing import Progress, import_files, open_or_create, summary
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import run_program
from tdmpc2.tasks import task_set


class ProgressLine:
    """One line on standard error, rewritten in place on a terminal, printed every 30 seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = 0.0
        self._path: Path | None = None
        self._started = 0.0

    def __call__(self, progress: Progress) -> None:
        name = f"[{progress.file}/{progress.files}] {progress.path.name}"
        if progress.skipped:
            print(f"{name}: already in the store, skipped", file=sys.stderr)
            return
        now = time.monotonic()
        if progress.path != self._path:
            self._path, self._started, self._printed = progress.path, now, now
            self._first = progress.episodes
        done = progress.episodes == progress.total_episodes
        if not (done or self._terminal or now - self._printed > 30):
            return
        self._printed = now
        rate = (progress.episodes - self._first) / max(now - self._started, 1e-9)
        left = f", {(progress.total_episodes - progress.episodes) / rate:.0f} s left" if rate else ""
        text = f"{name}: {progress.episodes:,} of {progress.total_episodes:,} episodes{'' if done else left}"
        end = "\n" if done or not self._terminal else ""
        print(f"\r{text:<78}" if self._terminal else text, end=end, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="published files (.pt)")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the store's folder")
    parser.add_argument("--task", default="mt30", help="task set whose order the files' ids follow (mt30)")
    parser.add_argument("--summary", action="store_true", help="only print what the store holds")
    parser.add_argument("--verify", action="store_true", help="read the store back and compare its checksums")
    arguments = parser.parse_args()
    if not arguments.files and not (arguments.summary or arguments.verify):
        parser.error("name at least one FILE, or --summary or --verify")
    if arguments.files and arguments.summary:
        parser.error("--summary takes no FILE; the summary is printed after every import anyway")
    if arguments.files:
        store = open_or_create(arguments.store, task_set(arguments.task))
        import_files(arguments.files, store, ProgressLine())
    else:
        store = EpisodeStore.open(arguments.store)
    print(summary(store))
    if arguments.verify:
        print(f"verified {store.verify() / 1e9:.2f} GB: every checksum is right")


if __name__ == "__main__":
    run_program(main, on_interrupt="interrupted; run the same command again to go on")
