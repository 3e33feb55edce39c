"""Raw bytes of every kind of file, damaged: zip directories, exported agents, labels, logs, results, own checkpoints.

With `--hypothesis-profile=slow`, the property tests read some 38,000 files with damaged bytes.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_fixtures import metadata, released
from data_fixtures import make_episodes, make_store, published_tensors, save_published
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import SMALL_PLAN, small_model, small_tasks
from property_fixtures import cases, damage, loads, odd_json
from run_fixtures import DUO

from tdmpc2.checkpointing import load_model, save_checkpoint
from tdmpc2.data.importing import import_files, open_or_create, summary
from tdmpc2.data.labels import LabelColumn, LabelFacts, LabelWriter, verify_labels
from tdmpc2.data.published import PublishedFile
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.evaluation.comparison import compare, comparison_text
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine, joined, load_json, results_table
from tdmpc2.export.files import export_agent
from tdmpc2.export.numpy_agent import CHECKSUM, OnnxAgent, facts_checksum
from tdmpc2.reporting.sinks import FileSink, metric_series, read_metrics
from tdmpc2.tasks import task_set

MT30 = task_set("mt30")
STEPS = 501


def copied(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


# -- zip directories -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("archives")
    dataset = published_tensors(make_episodes(MT30, [0, 29], STEPS, 24, 6))
    save_published(folder / "dataset.pt", dataset)
    torch.save(released(True), folder / "released.pt")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


@st.composite
def damaged_directory(draw: st.DrawFn, data: bytes) -> bytes:
    """One to three bytes of the zip directory, or of a member's own header, are others."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        heads = [info.header_offset for info in archive.infolist()]
    start = data.index(b"PK\x01\x02")
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(start, len(data) - 1) | st.sampled_from(heads).map(lambda head: head + 26))
        out[place] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, out[place] ^ 1, out[place] ^ 0x40)))
    return bytes(out)


def import_and_sum(path: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    store = open_or_create(folder, MT30)
    import_files([path], store)
    assert summary(store).isascii()


@cases(250)
@given(name=st.sampled_from(("dataset", "released")), data=st.data())
def test_damaged_zip_directories(archives: dict[str, bytes], tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / f"{name}.pt"
    path.write_bytes(data.draw(damaged_directory(archives[name])))
    if name == "released":
        loads(lambda: load_model(path, small_tasks()), path)
    elif loads(lambda: PublishedFile.open(path), path):
        loads(lambda: import_and_sum(path, tmp_path / "store"), path)


# -- exported agents -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_checkpoint(folder / "model.safetensors", small_model().state_dict(), metadata())
    export_agent(folder / "model.safetensors", folder / "agent", planner=SMALL_PLAN)
    return folder / "agent"


def act(folder: Path) -> bool:
    def run() -> None:
        agent = OnnxAgent(folder, seed=0)
        action = agent.act(np.zeros((1, agent.obs_dim), np.float32), [0])
        assert action.shape == (1, agent.action_dim)
        assert np.isfinite(action).all()

    return loads(run, folder, ValueError)


@cases(250)
@given(data=st.data())
def test_damaged_files_of_exported_agents(exported: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = copied(exported, tmp_path / "agent")
    names = sorted(p.name for p in folder.glob("*.onnx"))
    file = folder / data.draw(st.sampled_from(("agent.json", "agent.json", *names)))
    before = file.read_bytes()
    file.write_bytes(data.draw(damage(before)))
    act(folder)


def test_every_flipped_bit_of_agent_json_is_found_or_harmless(exported: Path, tmp_path: Path) -> None:
    """What loads has every fact that it had: a flipped bit can still be a space for another."""
    folder = copied(exported, tmp_path / "agent")
    file = folder / "agent.json"
    whole = file.read_bytes()
    facts = json.loads(whole)
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        if act(folder):
            assert json.loads(file.read_bytes()) == facts


@cases(200)
@given(data=st.data())
def test_odd_facts_of_exported_agents(exported: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The checksum fits, where the content can have one."""
    folder = copied(exported, tmp_path / "agent")
    file = folder / "agent.json"
    facts = json.loads(file.read_text())
    facts.pop(CHECKSUM)
    text = data.draw(odd_json(json.dumps(facts)))
    try:
        changed = json.loads(text)
        text = json.dumps(changed | {CHECKSUM: facts_checksum(changed)})
    except (ValueError, TypeError, RecursionError):
        pass  # it has none
    file.write_bytes(text.encode(errors="surrogatepass"))
    act(folder)


# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeStore, Path]:
    folder = tmp_path_factory.mktemp("labels")
    store = make_store(folder / "store", DUO, [0, 1, 1, 0, 1], steps=6)
    facts = LabelFacts(store.fingerprint, DUO.tasks, 5, 6, "1M", "0123456789abcdef", 1000, "float32")
    with LabelWriter(folder / "column", facts, block_episodes=2) as writer:
        writer.append(np.arange(30, dtype=np.float32).reshape(5, 6))
    return store, folder / "column"


def read_column(folder: Path, store: EpisodeStore) -> bool:
    def read() -> None:
        column = LabelColumn.open(folder, store, DUO.tasks)
        assert column.at(np.array([4]), np.array([5])).shape == (1,)
        assert column.header.facts.teacher.isprintable()

    loads(lambda: verify_labels(folder, store), folder)
    return loads(read, folder)


@cases(200)
@given(data=st.data())
def test_damaged_labels(labelled: tuple[EpisodeStore, Path], tmp_path: Path, data: st.DataObject) -> None:
    store, whole = labelled
    folder = copied(whole, tmp_path / "column")
    file = folder / data.draw(st.sampled_from(("labels.json", "labels.json", "labels.f32")))
    file.write_bytes(data.draw(damage(file.read_bytes())))
    read_column(folder, store)


@cases(200)
@given(data=st.data())
def test_odd_labels(labelled: tuple[EpisodeStore, Path], tmp_path: Path, data: st.DataObject) -> None:
    store, whole = labelled
    folder = copied(whole, tmp_path / "column")
    file = folder / "labels.json"
    file.write_bytes(data.draw(odd_json(file.read_text())).encode(errors="surrogatepass"))
    read_column(folder, store)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher", "1M\x1b[31m"),
        ("precision", "float32\r"),
        ("store", "\u202eabc"),
        ("tasks", ["walker-walk", "\x07"]),
        ("episodes", True),
        ("version", True),
        ("episodes", 10**30),
        ("teacher", "x" * 10_000),
    ],
)
def test_labels_hold_nothing_that_a_terminal_cannot_show(
    labelled: tuple[EpisodeStore, Path], tmp_path: Path, key: str, value: object
) -> None:
    store, whole = labelled
    folder = copied(whole, tmp_path / "column")
    content = json.loads((folder / "labels.json").read_text()) | {key: value}
    (folder / "labels.json").write_text(json.dumps(content))
    assert not read_column(folder, store)


# -- logs ------------------------------------------------------------------------------------------------------------


def logged(folder: Path) -> Path:
    sink = FileSink(folder)
    for step in range(1, 8):
        sink.log(step, {"loss": 1 / step, "norm": float("nan"), "count": step}, "train")
        sink.log(step, {"score": 10.0 * step}, "eval")
    sink.close()
    return folder


def resumed(folder: Path) -> list[dict[str, Any]]:
    """A run that goes on after step 5: it never fails for what the log holds."""
    sink = FileSink(folder, resume_step=5)
    sink.log(6, {"loss": 0.5, "new": 1.0}, "train")
    sink.close()
    rows = read_metrics(folder)
    assert rows[-1]["step"] == 6
    assert all(row["step"] <= 5 for row in rows[:-1])
    for name in {name for row in rows for name in row if name not in ("step", "category", "time")}:
        metric_series(rows, name)
    assert (folder / "metrics.csv").read_text().count("\n") == len(rows) + 1
    return rows


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logged(tmp_path_factory.mktemp("log"))


@cases(300)
@given(data=st.data())
def test_damaged_logs(log: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = copied(log, tmp_path / "run")
    file = folder / data.draw(st.sampled_from(("metrics.jsonl", "metrics.jsonl", "metrics.csv")))
    file.write_bytes(data.draw(damage(file.read_bytes())))
    resumed(folder)


ODD_LINES: dict[str, bytes] = {
    "text value": b'{"step": 1, "category": "train", "loss": "high"}',
    "true": b'{"step": 1, "category": "train", "loss": true}',
    "true step": b'{"step": true, "category": "train", "loss": 1.0}',
    "nested": b'{"step": 1, "category": "train", "loss": {"a": [1]}}',
    "huge": b'{"step": 1, "category": "train", "loss": 1' + b"0" * 400 + b"}",
    "digits": b'{"step": 1, "category": "train", "loss": 1' + b"0" * 5000 + b"}",
    "huge step": b'{"step": 1' + b"0" * 400 + b', "category": "train"}',
    "negative step": b'{"step": -1, "category": "train", "loss": 1.0}',
    "infinite": b'{"step": 1, "category": "train", "loss": 1e999}',
    "nan": b'{"step": 1, "category": "train", "loss": NaN}',
    "surrogate": b'{"step": 1, "category": "train", "\\ud800": 1.0}',
    "control": b'{"step": 1, "category": "train", "\\u001b[31m": 1.0}',
    "deep": b"[" * 200_000,
    "deep object": b'{"step": 1, "category": "train", "x": ' + b"[" * 800 + b"]" * 800 + b"}",
    "category": b'{"step": 1, "category": ["train"], "loss": 1.0}',
    "encoding": b'{"step": 1, "category": "train", "\xff\xfe": 1.0}',
    "twice": b'{"step": 1, "step": 2, "category": "train", "loss": 1.0}',
    "time": b'{"step": 1, "category": "train", "time": "now", "loss": 1.0}',
    "list": b"[1, 2]",
    "empty": b"",
}


@pytest.mark.parametrize("name", sorted(ODD_LINES))
def test_odd_lines_are_left_out_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    logged(tmp_path)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join((*lines[:3], ODD_LINES[name] + b"\n", *lines[3:])))
    assert len(resumed(tmp_path)) == 11
    assert "1 unreadable line(s) left out" in capsys.readouterr().err


def test_a_log_that_is_a_binary_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(bytes(range(256)) * 100)
    assert len(resumed(tmp_path)) == 1
    assert capsys.readouterr().err.count("\n") == 1


# -- what is shown -----------------------------------------------------------------------------------------------


def test_a_store_s_summary_shows_no_control_characters(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", DUO, [0, 1], steps=6)
    header = tmp_path / "s" / "store.json"
    content = json.loads(header.read_text())
    content["notes"] = "a note\x1b[31m\r\nof two lines"
    content["segments"][0]["source"] = "\x1b]0;title\x07"
    content["tasks"][0] = "walk\x1b[2J"
    content.pop("crc32", None)
    header.write_text(json.dumps(content))
    text = summary(EpisodeStore.open(store.path))
    assert all(line.isprintable() for line in text.splitlines())
    assert r"a note\x1b[31m\r\nof two lines" in text
    assert r"from \x1b]0;title\x07" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["task_embedding", "encoder.layers.0.weight", "q_heads.layers.2.bias"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    state = {n: t.clone() for n, t in small_model().state_dict().items()}
    state[name].flatten()[-1] = value
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, state, metadata())
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: '{name}' holds NaN or infinity"):
        load_model(path)
    content = released(False)
    content["_task_emb.weight"][0, 0] = value
    torch.save({n: t.half() for n, t in content.items()}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match=r"half\.pt: 'task_embedding' holds NaN or infinity"):
        load_model(tmp_path / "half.pt", small_tasks())


EVIL = "x\x1b[31m\r\n\u202ey"


def results(path: Path, **changes: Any) -> EvaluationResult:
    """A results file whose texts are what a terminal would obey, read back."""
    episodes = tuple(EpisodeResult(EVIL, n, 7, 100.0 * n, 500) for n in range(3))
    configuration = {"planner": {"horizon": EVIL}, EVIL: 1, "other": 2}
    values: dict[str, Any] = {
        "label": EVIL,
        "task_set": EVIL,
        "tasks": (EVIL,),
        "episodes": episodes,
        "configuration": configuration,
        "machine": Machine(EVIL, 2, EVIL),
        "wall_seconds": 1.0,
        "decisions": 1500,
        "versions": {"mujoco": EVIL, EVIL: "1"},
    }
    EvaluationResult(**(values | changes)).save_json(path)
    return load_json(path)


def is_plain(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_results_show_no_control_characters(tmp_path: Path) -> None:
    first = results(tmp_path / "a.json")
    machine = Machine("b", 2, "b\x07")
    second = results(tmp_path / "b.json", configuration={}, versions={"mujoco": "2\x1b"}, machine=machine)
    assert is_plain(results_table(first, {EVIL: 1.0}, 1.0, EVIL))
    for style in ("plain", "markdown"):
        assert is_plain(results_table(first, style=style))
        text = comparison_text(compare(first, second), style=style)
        assert is_plain(text)
        assert "planner settings differ" in text
    other = results(tmp_path / "c.json", tasks=("t",), episodes=(EpisodeResult("t", 0, 1, 1.0, 5),))
    for refused in (
        lambda: compare(first, other),
        lambda: joined([first, second], "x"),
        lambda: joined([first] * 2, "x"),
    ):
        with pytest.raises(UserError) as caught:
            refused()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"episode": 1,', '"episode": -1,', r"'episodes\[1\].episode' is -1, expected a whole number from 0 on"),
        ('"episode": 1,', '"episode": true,', "is True, expected a whole number"),
        ('"episode": 1,', '"episode": 1' + "0" * 60 + ",", "expected a whole number"),
        ('"episode": 1,', '"episode": 1, "episode": 2,', "holds the key 'episode' twice"),
        ('"cores": 2', '"cores": -2', "cores' is -2"),
        ('"decisions": 1500', '"decisions": false', "decisions' is False"),
        ('"wall_seconds": 1.0', '"wall_seconds": NaN', "holds NaN, which is not JSON"),
        ('"wall_seconds": 1.0', '"wall_seconds": true', "wall_seconds' is True"),
    ],
)
def test_numbers_in_results_that_cannot_be(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "a.json"
    results(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load_json(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"task_set": EVIL},
        {"tasks": (EVIL, "b", "c")},
        {"versions": {EVIL: "1"}},
        {"versions": {"torch": EVIL}},
        {"step": -1},
        {"step": True},
        {"step": 10**30},
        {"task_set": "x" * 10_000},
    ],
)
def test_checkpoints_name_nothing_that_a_terminal_cannot_show(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, small_model().state_dict(), metadata(**changes))
    with pytest.raises(CheckpointError, match="its metadata is damaged") as caught:
        load_model(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "key", ["_pi.\u00b2.weight", "_Qs.params.\u0663", "_Qs.params." + "9" * 5000, "_pi.\x1b[31m.weight"]
)
def test_names_of_released_tensors_that_are_almost_right(tmp_path: Path, key: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(released(False) | {key: torch.zeros(2)}, path)
    assert not loads(lambda: load_model(path, small_tasks()), path)
