"""Downloads the published dataset or models from the Hugging Face hub.

python scripts/download.py data mt30 --to data/hub
python scripts/download.py data mt30 --chunks 0 --to data/hub --yes
python scripts/download.py model mt30-317M mt30-48M --to data/hub

Sizes and free disk space are shown first. An interrupted download goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tdmpc2.data.hub import (
    DATASETS,
    HuggingFaceHub,
    RemoteFile,
    dataset_files,
    download,
    model_file,
    plan,
)
from tdmpc2.errors import DataError
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.progress import Progress

INTERRUPTED = "interrupted; run the same command again to go on"


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    data = commands.add_parser("data", help="a published dataset")
    data.add_argument("name", help=" or ".join(DATASETS))
    data.add_argument("--chunks", type=int, nargs="+", metavar="N", help="only these chunks")
    model = commands.add_parser("model", help="published models")
    model.add_argument("names", nargs="+", metavar="NAME", help="mt30-317M, …, or TASK-SEED, as walker-walk-1")
    for command in (data, model):
        command.add_argument("--to", type=Path, default=Path("data/hub"), metavar="DIR", help="(data/hub)")
        command.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    if arguments.what == "data":
        files = dataset_files(arguments.name, arguments.chunks)
    else:
        files = [model_file(name) for name in dict.fromkeys(arguments.names)]
    hub = HuggingFaceHub()
    planned = plan(files, arguments.to, hub, report=print)
    print(planned.table())
    if not planned.to_fetch:
        print("nothing to fetch: every file is there and its checksum is right")
        return
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise DataError("nobody can be asked here; add --yes to start the download.")
        if input("Fetch them now? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was fetched")
            return
    there: dict[RemoteFile, int] = {}
    with Progress(planned.bytes_to_fetch, "fetching", "MB", scale=10**6) as progress:

        def show(remote: RemoteFile, done: int) -> None:
            # The first call tells what an earlier download left, which is not to be fetched.
            progress.update(done - there.get(remote, done), note=remote.file.path)
            there[remote] = done

        download(planned, hub, show)
    print("every file is there and its checksum is right")
