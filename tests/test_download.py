"""Downloads against a small hub on this machine that speaks the real one's protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from data_fixtures import run_script

from tdmpc2.data.hub import (
    HubFile,
    RemoteFile,
    dataset_files,
    download,
    model_file,
    plan,
)
from tdmpc2.errors import DataError

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_names_of_files() -> None:
    assert [f.path for f in dataset_files("mt30")] == [f"mt30/chunk_{i}.pt" for i in range(4)]
    assert [f.path for f in dataset_files("mt80", [19, 3, 19])] == ["mt80/chunk_19.pt", "mt80/chunk_3.pt"]
    assert len(dataset_files("mt80")) == 20
    assert model_file("mt30-317M") == HubFile("model", "multitask/mt30-317M.pt")
    assert model_file("walker-walk-3") == HubFile("model", "dmcontrol/walker-walk-3.pt")
    for name in ("mt30-2M", "walker-walk", "walker-walk-4", "../secret-1", "mt30"):
        with pytest.raises(DataError, match=f"unknown model '{name}', expected one of mt30-1M"):
            model_file(name)
    with pytest.raises(DataError, match="unknown dataset 'mt50', expected one of mt30, mt80"):
        dataset_files("mt50")
    with pytest.raises(DataError, match="found chunk 4, expected 0 to 3"):
        dataset_files("mt30", [4])


@dataclass
class MemoryHub:
    """A hub that is a dictionary; `reads` lists what was asked for, `breaks` ends each answer after so many bytes."""

    files: dict[HubFile, bytes]
    claimed_size: int | None = None
    corrupt: bool = False
    breaks: int | None = None
    silent: bool = False
    reads: list[tuple[str, int]] = field(default_factory=list)

    def describe(self, files: Sequence[HubFile]) -> list[RemoteFile]:
        return [
            RemoteFile(f, self.claimed_size or len(data), hashlib.sha256(data).hexdigest(), REVISION)
            for f, data in self.files.items()
            if f in files
        ]

    def read(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        self.reads.append((remote.file.path, start))
        data = self.files[remote.file]
        data = (data[::-1] if self.corrupt else data)[start:]
        if self.silent:
            return
        yield data[: self.breaks]
        if self.breaks is not None and self.breaks < len(data):
            raise DataError("the connection broke")


FILES = dataset_files("mt30", [0, 1, 2])
CONTENT = {file: f"content of {file.path}".encode() for file in FILES}


def test_only_what_is_missing_or_damaged_is_fetched(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT)
    (tmp_path / "mt30").mkdir()
    (tmp_path / FILES[0].path).write_bytes(CONTENT[FILES[0]])
    (tmp_path / FILES[1].path).write_bytes(CONTENT[FILES[1]][::-1])
    planned = plan(FILES, tmp_path, hub)
    table = planned.table()
    assert "chunk_0.pt  (there)" in table
    assert "chunk_1.pt  (damaged, to replace)" in table and "chunk_2.pt  (to fetch)" in table
    assert "to fetch in 2 files" in table and f"free at {tmp_path}" in table
    seen: list[tuple[str, int]] = []
    download(planned, hub, lambda remote, done: seen.append((remote.file.path, done)))
    assert sorted(hub.reads) == [("mt30/chunk_1.pt", 0), ("mt30/chunk_2.pt", 0)]
    assert all((tmp_path / f.path).read_bytes() == CONTENT[f] for f in FILES)
    assert len(list((tmp_path / "mt30").iterdir())) == 3
    assert seen[:2] == [("mt30/chunk_2.pt", 0), ("mt30/chunk_2.pt", len(CONTENT[FILES[2]]))]
    assert plan(FILES, tmp_path, hub).to_fetch == ()


def test_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT, corrupt=True)
    with pytest.raises(DataError, match=r"chunk_0\.pt: the SHA-256 of what arrived is not the hub's"):
        download(plan(FILES, tmp_path, hub), hub)
    assert list((tmp_path / "mt30").iterdir()) == []


def test_broken_connections_go_on_where_they_broke(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT, breaks=10)
    download(plan(FILES[:1], tmp_path, hub), hub, pause=0)
    assert hub.reads == [("mt30/chunk_0.pt", start) for start in (0, 10, 20)]
    assert (tmp_path / FILES[0].path).read_bytes() == CONTENT[FILES[0]]


@pytest.mark.parametrize("silent", [True, False])
def test_a_hub_that_sends_nothing_is_given_up(tmp_path: Path, silent: bool) -> None:
    hub = MemoryHub(CONTENT, breaks=0, silent=silent)
    with pytest.raises(DataError, match="sends nothing" if silent else "the connection broke"):
        download(plan(FILES, tmp_path, hub), hub, pause=0)
    assert len(hub.reads) == 3


def test_an_interrupted_download_goes_on_in_the_next_run(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT)

    def interrupt(remote: RemoteFile, done: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    hub.breaks = 7
    with pytest.raises(KeyboardInterrupt):
        download(plan(FILES, tmp_path, hub), hub, interrupt)
    hub.breaks = None
    planned = plan(FILES, tmp_path, hub)
    assert planned.bytes_to_fetch == sum(map(len, CONTENT.values())) - 7
    download(planned, hub)
    assert hub.reads[1] == ("mt30/chunk_0.pt", 7)
    assert all((tmp_path / f.path).read_bytes() == CONTENT[f] for f in FILES)


def test_a_disk_too_small_is_refused_before_the_start(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT, claimed_size=10**16)
    planned = plan(FILES, tmp_path / "not" / "there", hub)
    with pytest.raises(DataError, match=r"GB free, expected at least 30000000\.0 GB; free some space"):
        download(planned, hub)
    assert hub.reads == []


def test_files_that_are_not_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mt30/chunk_3\.pt: not on the hub"):
        plan(dataset_files("mt30"), tmp_path, MemoryHub(CONTENT))


class Handler(BaseHTTPRequestHandler):
    """The hub's endpoints: what a repository is, its files' sizes and checksums, and their bytes by range."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    requests: list[str]
    cut_after: int | None
    ranges = True
    address: str

    def log_message(self, format: str, *args: object) -> None:
        self.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": REVISION, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            kind = self.path.split("/")[2]
            return self.send(200, json.dumps({"id": "nicklashansen/tdmpc2", "sha": REVISION, "_": kind}).encode())
        content = self.files.get(self.path.split(f"/resolve/{REVISION}/")[-1])
        if content is None:
            return self.send(404, b"", X_Error_Code="EntryNotFound")
        checksum = hashlib.sha256(content).hexdigest()
        wanted = self.headers.get("Range", "bytes=0-") if self.ranges else "bytes=0-"
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        headers = {
            "ETag": f'"{checksum}"',
            "X-Linked-Etag": f'"{checksum}"',
            "X-Linked-Size": str(len(content)),
        }
        headers["Accept-Ranges"] = "bytes"
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if type(self).cut_after is not None:
            sent, type(self).cut_after = content[start : start + type(self).cut_after], 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(sent)
            self.close_connection = True
            return None
        return self.send(206 if start else 200, content[start:], **headers)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        answer = []
        for path in wanted:
            if path in self.files:
                checksum = hashlib.sha256(self.files[path]).hexdigest()
                size = len(self.files[path])
                lfs = {"oid": checksum, "size": size, "pointerSize": 134}
                answer.append({"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs})
        self.send(200, json.dumps(answer).encode(), Content_Type="application/json")


@pytest.fixture
def server() -> Iterator[type[Handler]]:
    """A hub with two chunks and one model; `address` is what HF_ENDPOINT must be."""
    files = {f.path: bytes(range(256)) * 8000 for f in dataset_files("mt30", [0, 1])}
    files["multitask/mt30-1M.pt"] = b"a model"
    handler = type("LocalHandler", (Handler,), {"files": files, "requests": [], "cut_after": None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        handler.address = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield handler
        listening.shutdown()


def script(server: type[Handler], home: Path, *arguments: object) -> tuple[int, str, str]:
    result = run_script("download.py", *arguments, HF_ENDPOINT=server.address, HF_HOME=str(home), NO_PROXY="*")
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


def test_the_script_fetches_checks_and_skips(tmp_path: Path, server: type[Handler]) -> None:
    to, home = tmp_path / "to", tmp_path / "home"
    code, out, err = script(server, home, "data", "mt30", "--chunks", 0, 1, "--to", to, "--yes")
    assert code == 0, err
    assert "0.002 GB  mt30/chunk_0.pt  (to fetch)" in out and "0.004 GB  to fetch in 2 files" in out
    assert (to / "mt30" / "chunk_1.pt").read_bytes() == server.files["mt30/chunk_1.pt"]
    assert "GET /api/datasets/nicklashansen/tdmpc2" in server.requests
    server.requests.clear()
    code, out, err = script(server, home, "data", "mt30", "--chunks", 0, 1, "--to", to)
    assert code == 0 and "nothing to fetch" in out
    assert not any("/resolve/" in request for request in server.requests)
    damaged = to / "mt30" / "chunk_0.pt"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    code, out, err = script(server, home, "data", "mt30", "--chunks", 0, 1, "--to", to, "--yes")
    assert code == 0 and "damaged, to replace" in out, err
    assert damaged.read_bytes() == server.files["mt30/chunk_0.pt"]


def test_the_script_fetches_models_and_asks_first(tmp_path: Path, server: type[Handler]) -> None:
    to, home = tmp_path / "to", tmp_path / "home"
    code, out, err = script(server, home, "model", "mt30-1M", "--to", to)
    assert code == 2 and "add --yes" in err and "multitask/mt30-1M.pt" in out
    assert not to.exists()
    code, _, err = script(server, home, "model", "mt30-1M", "--to", to, "--yes")
    assert code == 0, err
    assert (to / "multitask" / "mt30-1M.pt").read_bytes() == b"a model"
    code, _, err = script(server, home, "model", "mt30-5M", "--to", to, "--yes")
    assert code == 2 and "multitask/mt30-5M.pt: not on the hub" in err


def test_the_script_goes_on_after_a_lost_connection(tmp_path: Path, server: type[Handler]) -> None:
    """The hub sends a million bytes, then nothing more until the script gives up."""
    to, home = tmp_path / "to", tmp_path / "home"
    server.cut_after = 1_000_000
    code, _, err = script(server, home, "data", "mt30", "--chunks", 0, "--to", to, "--yes")
    assert code == 2 and "run the same command again" in err
    (part,) = (to / "mt30").iterdir()
    assert part.suffix == ".part" and part.stat().st_size == 1_000_000
    server.cut_after = None
    server.requests.clear()
    code, out, err = script(server, home, "data", "mt30", "--chunks", 0, "--to", to, "--yes")
    assert code == 0, err
    assert "0.001 GB  to fetch in 1 files" in out
    assert [r.split()[-1] for r in server.requests if "/resolve/" in r] == ["bytes=1000000-"]
    assert (to / "mt30" / "chunk_0.pt").read_bytes() == server.files["mt30/chunk_0.pt"]


def test_a_server_without_ranges(tmp_path: Path, server: type[Handler]) -> None:
    to, home = tmp_path / "to", tmp_path / "home"
    checksum = hashlib.sha256(server.files["mt30/chunk_0.pt"]).hexdigest()
    (to / "mt30").mkdir(parents=True)
    (to / "mt30" / f"chunk_0.pt.{checksum[:16]}.part").write_bytes(server.files["mt30/chunk_0.pt"][:1_500_000])
    server.ranges = False
    code, _, err = script(server, home, "data", "mt30", "--chunks", 0, "--to", to, "--yes")
    assert code == 0, err
    assert (to / "mt30" / "chunk_0.pt").read_bytes() == server.files["mt30/chunk_0.pt"]


def test_no_network_is_said_plainly(tmp_path: Path) -> None:
    result = run_script(
        "download.py", "model", "mt30-1M", "--to", tmp_path, HF_ENDPOINT="http://127.0.0.1:9", NO_PROXY="*"
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "http://127.0.0.1:9: nicklashansen/tdmpc2 cannot be fetched" in result.stderr
    assert "HTTPS_PROXY" in result.stderr
