"""The page that shows an agent in the running simulator: the stage, the server, and a browser that looks at it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np
import pytest
from run_fixtures import DUO, ROOT, TASKS, environment, run_program, tiny_model

from tdmpc2.agent import Agent
from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.envs.rendering import choose_backend
from tdmpc2.errors import RenderError, UserError
from tdmpc2.places import CHECKPOINTS
from tdmpc2.planner import PlannerSettings
from tdmpc2.play import PageServer, Planning, Stage
from tdmpc2.programs.play import _tasks
from tdmpc2.tasks import task_set

TINY = PlannerSettings(iterations=1, num_samples=8, num_elites=4, num_pi_trajs=2)
SMALLER = PlannerSettings(iterations=1, num_samples=4, num_elites=2, num_pi_trajs=2)
PLANNINGS = (Planning("tiny", TINY, True), Planning("smaller", SMALLER, False), Planning("prior alone", None, False))
TEACHER = CHECKPOINTS / "quickstart_teacher.safetensors"
PLAY = "scripts/play.py"


def needs_frames() -> None:
    try:
        choose_backend()
    except RenderError as error:
        pytest.skip(f"no headless OpenGL here: {error}")


class Client:
    """Asks a page as a browser does."""

    def __init__(self, address: str) -> None:
        self.port = int(address.rstrip("/").rpartition(":")[2])

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.request("GET", path, None, headers)

    def state(self, after: int = 0) -> dict[str, Any]:
        status, content = self.get(f"/state?after={after}")
        assert status == 200
        return json.loads(content)

    def ask(self, wishes: object, **headers: str) -> tuple[int, dict[str, Any]]:
        body = wishes if isinstance(wishes, bytes) else json.dumps(wishes).encode()
        status, content = self.request("POST", "/ask", body, {"Content-Type": "application/json", **headers})
        return status, json.loads(content)

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """The first state that does."""
        end = time.monotonic() + seconds
        state = self.state()
        while not holds(state):
            assert time.monotonic() < end, state
            state = self.state(state["number"])
        return state


class Playing:
    """A stage that is made, run and closed in a thread of its own, as OpenGL asks for, with its page."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.ready.wait(60) and self.stage is not None

    def _run(self) -> None:
        try:
            agent = Agent(tiny_model(), DUO, TINY)
            self.stage = Stage(agent, TASKS, PLANNINGS, task=TASKS[1], planning="tiny")
        finally:
            self.ready.set()
        with contextlib.closing(self.stage):
            self.stage.run()

    def stop(self) -> None:
        assert self.stage is not None
        self.stage.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def playing() -> Iterator[Stage]:
    needs_frames()
    made = Playing()
    assert made.stage is not None
    yield made.stage
    made.stop()


@pytest.fixture
def client(playing: Stage) -> Iterator[Client]:
    with PageServer(playing) as server:
        yield Client(server.address)


def test_frames_and_figures_follow_the_simulator(client: Client) -> None:
    first = client.until(lambda state: state["decision"] > 0)
    later = client.until(lambda state: state["number"] > first["number"] + 2)
    assert later["episode"] > first["episode"] or later["decision"] > first["decision"]
    assert (later["task"], later["planner"]) == (TASKS[1], "tiny")
    assert later["tasks"] == list(TASKS) and later["planners"] == [each.name for each in PLANNINGS]
    assert later["decisions"] == 500 and np.isfinite(later["planned"]) and later["return"] >= 0
    status, jpeg = client.get("/frame")
    frame = imageio.v3.imread(jpeg)
    assert status == 200 and frame.shape == (384, 384, 3) and frame.std() > 5


def test_the_page_is_one_file(client: Client) -> None:
    status, page = client.get("/")
    assert status == 200 and page.startswith(b"<!DOCTYPE html>")
    assert b"http://" not in page and b"https://" not in page and b" src=" not in page


def test_task_and_planner_change(client: Client) -> None:
    assert client.ask({"planner": "prior alone"}) == (200, {})
    state = client.until(lambda state: state["planner"] == "prior alone" and state["decision"] > 0)
    assert state["planned"] is None
    before = imageio.v3.imread(client.get("/frame")[1])
    assert client.ask({"task": TASKS[0], "planner": "smaller"}) == (200, {})
    state = client.until(lambda state: state["task"] == TASKS[0] and state["planned"] is not None)
    assert state["planner"] == "smaller" and state["episode"] == 0
    after = imageio.v3.imread(client.get("/frame")[1])
    assert np.abs(after.astype(int) - before).mean() > 5, "another body"


def test_pause_and_reset(client: Client) -> None:
    client.ask({"paused": True})
    paused = client.until(lambda state: state["paused"])
    assert client.state(paused["number"])["decision"] == paused["decision"], "which waits, and nothing comes"
    client.ask({"reset": True})
    anew = client.until(lambda state: state["episode"] == paused["episode"] + 1)
    assert (anew["decision"], anew["return"], anew["planned"], anew["paused"]) == (0, 0.0, None, True)
    client.ask({"paused": False})
    client.until(lambda state: state["decision"] > 0 and not state["paused"])


@pytest.mark.parametrize(
    ("wishes", "status", "reason"),
    [
        ({"task": "cup-spin"}, 400, f"task is 'cup-spin', expected one of {', '.join(TASKS)}."),
        ({"task": ["cup-spin"]}, 400, "task is ['cup-spin'], expected one of"),
        ({"planner": None}, 400, "planner is None, expected one of tiny, smaller, prior alone."),
        ({"paused": 1}, 400, "paused is 1, expected one of True, False."),
        ({"reset": False}, 400, "reset is False, expected one of True."),
        ({"task": TASKS[0], "speed": 3}, 400, "'speed' is unknown; choose among task, planner, paused, reset."),
        ({}, 400, "nothing is asked for"),
        ([1], 400, "the content is no JSON object."),
        (b"{", 400, "the content is not valid JSON"),
        (b"\xff", 400, "the content is not valid JSON"),
        (b" " * 3000, 413, "the content is longer than 2000 bytes."),
    ],
)
def test_wrong_wishes_are_refused(client: Client, wishes: object, status: int, reason: str) -> None:
    found, answer = client.ask(wishes)
    assert found == status and answer["error"].startswith(reason), answer
    client.state()


def test_other_requests_are_refused(client: Client) -> None:
    assert client.get("/other")[0] == client.get("//[")[0] == client.request("POST", "/state", b"{}", {})[0] == 404
    for after in ("x", "-1", "1" * 30, "%C2%B2"):
        assert client.get(f"/state?after={after}")[0] == 400, after
    assert client.ask({"reset": True}, **{"Content-Type": "text/plain"})[0] == 415
    assert client.ask({"reset": True}, **{"Content-Length": "x"})[0] == 411
    assert client.request("DELETE", "/", None, {})[0] == 501
    for host in ("example.org", "[::1", "127.0.0.1.example.org"):
        assert client.get("/state", Host=host)[0] == client.ask({"reset": True}, Host=host)[0] == 403, host
    assert client.get("/frame", Host="localhost:1234")[0] == 200


def test_a_port_is_taken(playing: Stage) -> None:
    with PageServer(playing) as server:
        port = Client(server.address).port
        with pytest.raises(UserError, match=f"port={port} is taken; give another"):
            PageServer(playing, port)
    with PageServer(playing, port) as server:
        assert Client(server.address).state()["number"] > 0
    with pytest.raises(ConnectionRefusedError):
        Client(server.address).get("/")


def test_what_a_stage_cannot_begin_with() -> None:
    agent = Agent(tiny_model(), DUO, TINY)
    with pytest.raises(UserError, match="task is 'cup-spin', expected one of"):
        Stage(agent, TASKS, PLANNINGS, task="cup-spin", planning="tiny")
    with pytest.raises(UserError, match="planner is 'x', expected one of tiny"):
        Stage(agent, TASKS, PLANNINGS, task=TASKS[0], planning="x")


# -- the program -----------------------------------------------------------------------------------------------------


def test_one_task_is_where_a_checkpoint_of_several_begins(shared_checkpoints: Path) -> None:
    own = read_checkpoint(TEACHER)
    assert _tasks(own, None) == (None, None) and _tasks(own, task_set("cup-spin")) == (None, "cup-spin")
    assert _tasks(own, task_set("quickstart")) == (task_set("quickstart"), None)
    with pytest.raises(UserError, match=r"quickstart_teacher.safetensors: knows no task 'walker-run'; its tasks are"):
        _tasks(own, task_set("walker-run"))
    released = read_checkpoint(shared_checkpoints / "mt30_1M_steps_045dist_fp16.pt")
    assert _tasks(released, task_set("cup-spin")) == (task_set("mt30"), "cup-spin")


def test_what_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    def told(*arguments: str, **changes: str) -> str:
        done = run_program(PLAY, *arguments, "browser=false", cwd=tmp_path, **changes)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    assert "checkpoint is not set: give checkpoint=…" in told("task=cup-spin")
    assert "nowhere.pt: no such checkpoint file" in told("checkpoint=nowhere.pt")
    assert "port must be at least 1, not 0" in told(f"checkpoint={TEACHER}", "port=0")
    assert "MUJOCO_GL is 'disabled'" in told(f"checkpoint={TEACHER}", "task=cup-spin", MUJOCO_GL="disabled")
    needs_frames()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port={port} is taken" in told(f"checkpoint={TEACHER}", f"port={port}")


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program, and the address that it tells."""
    command = [sys.executable, str(ROOT / PLAY), f"checkpoint={TEACHER}", "browser=false", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "the page is http://127.0.0.1:" in line, line + process.communicate(timeout=60)[1]
        yield process, next(word for word in line.split() if word.startswith("http"))
    finally:
        process.kill()
        process.communicate()


def test_the_program_ends_with_ctrl_c(tmp_path: Path) -> None:
    needs_frames()
    with started(tmp_path, "task=cup-spin", "num_samples=8", "num_elites=4", "num_pi_trajs=2") as (process, address):
        client = Client(address)
        state = client.until(lambda state: state["decision"] > 0)
        assert (state["task"], state["planner"]) == ("cup-spin", "as given")
        assert {"as given", "default", "fast", "small", "prior alone"} <= set(state["planners"])
        client.ask({"paused": True})
        client.until(lambda state: state["paused"])
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "ended\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_browser_shows_it(tmp_path: Path) -> None:
    needs_frames()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here")
    with started(tmp_path, "task=cup-spin", "planner=fast") as (_, address):
        client = Client(address)
        client.until(lambda state: state["decision"] > 1)
        common = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        common += ["--virtual-time-budget=4000", "--window-size=1000,700"]
        shot = tmp_path / "shot.png"

        def content() -> str:
            return subprocess.run([*common, "--dump-dom", address], capture_output=True, text=True, timeout=120).stdout

        def colours() -> np.ndarray:
            """Mean red, green and blue where the frame is: dark blue; without a frame, light grey."""
            subprocess.run([*common, f"--screenshot={shot}", address], capture_output=True, timeout=120, check=True)
            page = imageio.v3.imread(shot)
            assert page.shape[:2] == (700, 1000)
            return page[80:520, 40:480, :3].reshape(-1, 3).mean(0)

        # The browser's own time does not wait for a decoded image: on a busy machine it may look too early.
        dom = next((found for _ in range(5) if "/frame?" in (found := content())), "")
        assert '<h1 id="title">cup-spin, fast</h1>' in dom and "<option>pendulum-spin</option>" in dom
        assert " of 500</td>" in dom and '<p id="error" role="status"></p>' in dom
        assert any(found[2] > found[0] + 20 and found.mean() < 150 for found in (colours() for _ in range(5)))
