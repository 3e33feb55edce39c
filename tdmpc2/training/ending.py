"""How a run ends: its checkpoints evaluated, planned and by the policy prior alone, and quantised (TD-MPC-Opt, tables
and figure 3).

Each evaluation is a results file in the run's folder. What is there already is kept, so that an interrupted end, or a
finished run of which more is asked, goes on with what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tdmpc2.agent import Agent
from tdmpc2.checkpointing import checkpoint_metadata, load_model, save_checkpoint
from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import load_json
from tdmpc2.evaluation.runner import evaluate
from tdmpc2.fileio import write_or_rescue
from tdmpc2.quantisation import quantise, scheme_named, without_target
from tdmpc2.reporting.progress import Progress
from tdmpc2.reporting.sinks import JSONL_NAME, metric_series, read_metrics
from tdmpc2.training.resuming import CHECKPOINTS, FINAL_NAME
from tdmpc2.training.settings import TrainSettings

EVALUATION_NAME = "evaluation.json"
"""Of the final checkpoint, planned."""


@dataclass(frozen=True)
class _Evaluation:
    """One to make: of a checkpoint, as stored or by a scheme, planned or by the prior alone."""

    file: str
    checkpoint: Path
    mpc: bool
    scheme: str | None = None


def evaluate_end(settings: TrainSettings) -> float | None:
    """Evaluates what the run's settings ask for and the folder does not hold yet.

    Returns:
        The normalised score of the final checkpoint, planned; where nothing is asked for (`final_episodes` 0), the one
        of the last evaluation between updates (`eval_freq`). None for a run that evaluates nothing.
    """
    if not settings.end.episodes:
        return _last_logged(settings)
    for wanted in _evaluations(settings):
        _evaluate(settings, wanted)
    score = load_json(settings.run_dir / EVALUATION_NAME).score().value
    return score if math.isfinite(score) else None


def _last_logged(settings: TrainSettings) -> float | None:
    if not (settings.run_dir / JSONL_NAME).is_file():
        return None
    scores = [score for _, score in metric_series(read_metrics(settings.run_dir), "normalised_score", "eval")]
    return scores[-1] if scores and math.isfinite(scores[-1]) else None


def _evaluations(settings: TrainSettings) -> Iterator[_Evaluation]:
    folder, stem = settings.run_dir / CHECKPOINTS, EVALUATION_NAME.removesuffix(".json")
    final = folder / FINAL_NAME
    yield _Evaluation(EVALUATION_NAME, final, mpc=True)
    yield _Evaluation(f"{stem}-prior.json", final, mpc=False)
    if settings.end.saved:
        for path in sorted(folder.glob("step_*.safetensors")):
            yield _Evaluation(f"{stem}-{path.stem}.json", path, mpc=True)
            yield _Evaluation(f"{stem}-{path.stem}-prior.json", path, mpc=False)
    for scheme in settings.end.schemes:
        yield _Evaluation(f"{stem}-{scheme}.json", final, mpc=True, scheme=scheme)


def _evaluate(settings: TrainSettings, wanted: _Evaluation) -> None:
    target = settings.run_dir / wanted.file
    checkpoint = wanted.checkpoint
    same = checkpoint.name == f"step_{settings.updates:08d}.safetensors"
    if wanted.scheme is not None:
        checkpoint = _quantised(checkpoint, wanted.scheme)
    model, tasks, _ = load_model(checkpoint, device=settings.device)
    agent = Agent(model, tasks, settings.planner)
    evaluation = replace(settings.evaluation, episodes=settings.end.episodes, mpc=wanted.mpc, video_dir=None)
    configuration = {
        **settings.config,
        "checkpoint": checkpoint.name,
        "weights": agent.checksum(),
        "eval_episodes": evaluation.episodes,
        "mpc": evaluation.mpc,
        "greedy": evaluation.greedy,
        "planner": asdict(settings.planner),
    }
    if _is_of(target, configuration):
        return
    if same:  # the last saved checkpoint is the final one, whose evaluation is there
        first = settings.run_dir / wanted.file.replace(f"-{checkpoint.stem}", "")
        result = replace(load_json(first), configuration=configuration)
        write_or_rescue(target, result.save_json)
        return
    name = str(settings.config.get("exp_name", settings.run_dir.name))
    said = f"{name}, {wanted.scheme or checkpoint.stem}, {'planned' if wanted.mpc else 'prior alone'}"
    with Progress(evaluation.decisions_of(tasks), f"evaluating {said}", "decisions") as progress:
        result = evaluate(agent, evaluation, label=said, configuration=configuration, on_decisions=progress.update)
    write_or_rescue(target, result.save_json)
    print(f"{said}: {result.score().value:.2f}")


_DECIDES = ("checkpoint", "weights", "eval_episodes", "mpc", "greedy", "planner")


def _is_of(path: Path, configuration: dict[str, object]) -> bool:
    """Whether a results file holds an evaluation of these weights with these settings; a damaged one holds none."""
    if not path.exists():
        return False
    try:
        held = load_json(path).configuration
    except UserError:
        return False
    return all(held.get(key) == configuration[key] for key in _DECIDES)


def _quantised(checkpoint: Path, scheme: str) -> Path:
    """The checkpoint by a scheme, without target Q, beside it; as deployed (scripts/quantize.py)."""
    target = checkpoint.with_name(f"{checkpoint.stem}-{scheme}.safetensors")
    model, tasks, source = load_model(checkpoint)
    tensors = without_target(quantise(model.state_dict(), scheme).tensors)
    version = scheme_named(scheme).version
    metadata = replace(checkpoint_metadata(source, tasks), scheme=scheme, scheme_version=version, normalised_score=None)
    save_checkpoint(target, tensors, metadata)
    return target
