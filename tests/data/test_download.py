"""Downloads against a small hub on this machine that speaks the real one's protocol."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from data_fixtures import run_script

from tdmpc2.data.hub import (
    HubFile,
    HuggingFaceHub,
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
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
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


# -- servers that are not the hub --------------------------------------------------------------------------------


class LyingHandler(Handler):
    """The hub, but for one of its answers: `lie` names it, `said` is what it says instead."""

    lie: str
    said: Any

    def do_GET(self) -> None:
        if self.path.startswith("/api/") and self.lie == "revision":
            return self.send(200, json.dumps({"sha": self.said}).encode())
        if self.path.startswith("/api/") and self.lie == "answer":
            return self.send(200, self.said)
        if self.path.startswith("/api/") and self.lie == "endless answer":
            return self.endless(b'{"x": "', b"x" * 65536, {})
        if self.path.startswith("/api/") and self.lie == "packed answer":
            return self.endless(gzip.compress(b"{"), b"\x00" * 65536, {"Content-Encoding": "gzip"})
        if self.path.startswith("/api/") and self.lie == "error":
            return self.send(500, self.said)
        if "/resolve/" in self.path and self.lie == "error of a file":
            return self.send(403, self.said, X_Error_Message="no\x1b[31m access" + "x" * 5000)
        if "/resolve/" in self.path and self.lie == "packed":
            return self.endless(gzip.compress(bytes(1000)), b"\x00" * 65536, {"Content-Encoding": "gzip"})
        if "/resolve/" in self.path and self.lie == "more":
            return self.endless(self.files[self.path.split(f"/resolve/{REVISION}/")[-1]], b"more" * 1000, {})
        if "/resolve/" in self.path and self.lie == "less":
            content = self.files[self.path.split(f"/resolve/{REVISION}/")[-1]]
            return self.send(200, content[: len(content) // 2])
        if "/resolve/" in self.path and self.lie == "nothing":
            return self.send(200, b"")
        if "/resolve/" in self.path and self.lie == "status":
            return self.send(204, b"")
        if "/resolve/" in self.path and self.lie == "range":
            return self.send(206, b"x" * 100, Content_Range=self.said)
        if "/resolve/" in self.path and self.lie == "loop":
            return self.send(302, b"", Location=self.path)
        return super().do_GET()

    def endless(self, first: bytes, block: bytes, headers: dict[str, str]) -> None:
        """An answer that goes on until the other side has had enough, or to 200 MB."""
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for part in (first, *itertools.repeat(block, (200 << 20) // len(block))):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.close_connection = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        path = "multitask/mt30-1M.pt"
        content = self.files[path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        answer: Any = [entry]
        if self.lie in ("size", "path", "lfs", "type"):
            entry[self.lie] = self.said
        elif self.lie == "sha256":
            entry["lfs"]["oid"] = self.said
        elif self.lie == "list":
            answer = self.said
        elif self.lie == "twice":
            answer = [entry, entry | {"size": 1}]
        self.send(200, json.dumps(answer).encode())


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LyingHandler]]:
    """A server whose `lie` and `said` the test sets; `HuggingFaceHub` asks it in this process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    handler = type("LocalLiar", (LyingHandler,), {"files": {"multitask/mt30-1M.pt": b"a model" * 1000}, "requests": []})
    handler.cut_after = None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        listening.daemon_threads = True
        handler.address = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("HF_ENDPOINT", handler.address)
        monkeypatch.setattr(constants, "ENDPOINT", handler.address)
        template = handler.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        close_session()
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield handler
        listening.shutdown()
        close_session()


NONSENSE = "does not answer as the hub does"
LIES: list[tuple[str, Any, str]] = [
    ("size", -1, "size of multitask/mt30-1M.pt is -1"),
    ("size", "many", "size of multitask/mt30-1M.pt is 'many'"),
    ("size", True, "size of multitask/mt30-1M.pt is True"),
    ("size", 1.5, "size of .* is 1.5"),
    ("size", 10**30, "size of .* is 1000"),
    ("size", None, "size of .* is None"),
    ("sha256", "../../../../evil", "SHA-256 of .* is '../"),
    ("sha256", "a" * 63, "SHA-256 of"),
    ("sha256", "\x1b[31m" + "a" * 59, "SHA-256 of"),
    ("sha256", 5, "checksum of .* is missing"),
    ("lfs", [1], "checksum of .* is missing"),
    ("path", "../evil", r"describes \.\./evil, which was not asked for"),
    ("path", 7, "something other than files"),
    ("type", "directory", "not on the hub"),
    ("list", {"path": "x"}, "list of files is a dict"),
    ("list", [None], "something other than files"),
    ("list", [[]] * 10, "something other than files"),
    ("twice", None, "or one twice"),
    ("revision", "main/../..", "revision of its models is 'main"),
    ("revision", "A" * 40, "revision of its models"),
    ("revision", ["0" * 40], "revision of its models"),
    ("answer", b"not JSON \x1b[31m", "is not JSON"),
    ("answer", b"[" * 100_000, "is not JSON"),
    ("answer", b"\xff\xfe", "is not JSON"),
    ("answer", b"[]", "revision of its models is None"),
    ("endless answer", None, "has no end"),
    ("packed answer", None, "packs what it sends"),
    ("error", b"<html>\x1b[31m\x07 broken\r\n" + b"x" * 100_000, r"status 500: <html>\\x1b\[31m"),
    ("error of a file", b"", r"status 403: no"),
    ("packed", None, "packs what it sends"),
    ("nothing", None, "sends nothing"),
    ("status", None, "status 204"),
    ("range", "bytes 5-104/7000", "sends bytes 5-104/7000 of .*, expected bytes 0 to 6999"),
    ("range", "bytes 0-104/9", "sends bytes 0-104/9"),
    ("range", "lines 1-2", "sends lines 1-2"),
    ("loop", None, "cannot be fetched"),
]


@pytest.mark.parametrize(("lie", "said", "message"), LIES, ids=[f"{i}-{lie}" for i, (lie, _, _) in enumerate(LIES)])
def test_what_a_server_says_is_checked(
    tmp_path: Path, liar: type[LyingHandler], lie: str, said: Any, message: str
) -> None:
    liar.lie, liar.said = lie, said
    hub, to = HuggingFaceHub(), tmp_path / "to"
    began = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        download(plan([model_file("mt30-1M")], to, hub), hub, pause=0)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1000
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["to"])
    written = [p for p in to.rglob("*") if p.is_file()]
    assert all(p.suffix == ".part" and p.stat().st_size == 0 for p in written)
    assert time.monotonic() - began < 10


def test_no_more_is_written_than_was_promised(tmp_path: Path, liar: type[LyingHandler]) -> None:
    liar.lie = "more"
    hub = HuggingFaceHub()
    download(plan([model_file("mt30-1M")], tmp_path, hub), hub, pause=0)
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert file.read_bytes() == liar.files["multitask/mt30-1M.pt"]


def test_a_server_that_sends_less_is_asked_for_the_rest(tmp_path: Path, liar: type[LyingHandler]) -> None:
    """It sends the first half each time, as one that knows no ranges: no byte is added twice."""
    liar.lie = "less"
    hub = HuggingFaceHub()
    with pytest.raises(DataError, match="sends nothing of multitask"):
        download(plan([model_file("mt30-1M")], tmp_path, hub), hub, pause=0)
    (part,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert part.suffix == ".part"
    assert part.stat().st_size == 3500


def test_two_downloads_do_not_add_to_one_file(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT, breaks=7)
    planned = plan(FILES[:1], tmp_path, hub)

    def second(remote: RemoteFile, done: int) -> None:
        if done == 7:
            with pytest.raises(DataError, match=r"chunk_0\.pt\..*\.part: another download is adding to this file"):
                download(planned, MemoryHub(CONTENT))

    download(planned, hub, second, pause=0)
    assert (tmp_path / FILES[0].path).read_bytes() == CONTENT[FILES[0]]
    assert [p.name for p in (tmp_path / "mt30").iterdir()] == ["chunk_0.pt"]


def test_a_partial_file_beyond_its_size_is_begun_anew(tmp_path: Path) -> None:
    hub = MemoryHub(CONTENT)
    planned = plan(FILES[:1], tmp_path, hub)
    checksum = planned.missing[0].sha256
    assert checksum is not None
    (tmp_path / "mt30").mkdir()
    (tmp_path / f"{FILES[0].path}.{checksum[:16]}.part").write_bytes(b"x" * 1000)
    assert planned.bytes_to_fetch == len(CONTENT[FILES[0]])
    download(planned, hub)
    assert (tmp_path / FILES[0].path).read_bytes() == CONTENT[FILES[0]]
