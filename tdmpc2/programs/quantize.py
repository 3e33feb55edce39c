"""Quantises a trained student, stores it, and evaluates it before and after.

python scripts/quantize.py checkpoint=logs/mt30/default/seed1/checkpoints/final.safetensors scheme=int8
python scripts/quantize.py checkpoint=student.safetensors scheme=int4 calibrate=data/mt30

Schemes: fp16, bf16, int8, int8-dynamic, mixed, int4, and the published paper-int8 and paper-mixed (see
docs/quantization.md). With calibrate, their integers are chosen by what the layers are given on a store's states. What
is written is loaded like any other checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.calibration import calibrate
from tdmpc2.checkpointing import (
    checkpoint_metadata,
    load_model,
    read_checkpoint,
    require_float,
    require_whole,
    save_checkpoint,
)
from tdmpc2.errors import UserError
from tdmpc2.evaluation.comparison import compare, comparison_text
from tdmpc2.evaluation.results import check_replaceable, score_text
from tdmpc2.evaluation.runner import evaluate_to_files
from tdmpc2.fileio import check_writable
from tdmpc2.model import WorldModel, model_checksum
from tdmpc2.quantisation import Quantised, Scheme, prior_alone, quantise_by, scheme_named, without_target
from tdmpc2.reporting.tables import format_table
from tdmpc2.settings.convert import (
    chosen_task_set,
    evaluation_settings,
    from_keys,
    path_of,
    plain,
    planning_of,
    required,
    result_name,
)
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision
from tdmpc2.settings.schema import QuantizeKeys
from tdmpc2.tasks import TaskSet


def after_precision(wanted: str, device: torch.device) -> str:
    """The arithmetic of the quantised student: half on CUDA; a CPU computes in float32 on what is stored."""
    if wanted != "auto":
        return wanted
    return "float16" if device.type == "cuda" else "float32"


def arithmetic(scheme: Scheme, precision: str, device: torch.device) -> str:
    """The words for what `precision` means with a scheme."""
    if scheme.integer_products:
        return f"int8 products and {precision} arithmetic"
    slow = " (a CPU has no float16 arithmetic)" if device.type == "cpu" else ""
    return f"{precision} arithmetic on {scheme.name} weights{slow}"


def report_table(quantised: Quantised) -> str:
    """A line for every tensor of the model; errors relative to the largest number of the tensor."""
    rows = []
    for line in quantised.report:
        relative = 1 / line.largest if line.largest else 0.0
        errors = [f"{line.largest_error * relative:.1e}", f"{line.mean_error * relative:.1e}", f"{line.zeroed:.1%}"]
        rows.append([line.name, line.kind, f"{line.numbers:,}", f"{line.bytes:,}", *errors])
    header = ["tensor", "stored as", "numbers", "bytes", "largest error", "mean error", "turned to 0"]
    return format_table(header, rows, align="llrrrrr")


def check_same_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises a UserError if a file at `path` holds anything else than these: it would be lost."""
    if not path.exists():
        return
    held = read_checkpoint(path).tensors
    if held.keys() != tensors.keys() or not all(torch.equal(held[name], tensor) for name, tensor in tensors.items()):
        raise UserError(f"{path} was made from another student; name another folder with output=…, or remove the file.")


def quantised_by(
    keys: QuantizeKeys, scheme: Scheme, model: WorldModel, tasks: TaskSet, data_dir: Path | None, seed: int
) -> Quantised:
    """The student rounded to nearest, or for the states of the store in `data_dir`."""
    if data_dir is None:
        return quantise_by(model.state_dict(), scheme)
    print(f"calibrating on {keys.calibrate_states:,} states of {data_dir}")
    return calibrate(model, tasks, scheme, data_dir, keys.calibrate_states, seed)


@hydra_entry("quantize")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    keys = from_keys(QuantizeKeys, config)
    scheme = scheme_named(keys.scheme)
    data_dir = path_of(config, "calibrate")
    kind = scheme.name if data_dir is None else f"{scheme.name}-calibrated"
    source = required(config, "checkpoint")
    device = resolve_device(config.device)
    model, tasks, checkpoint = load_model(source, chosen_task_set(config))
    require_float(checkpoint, "quantisation")
    if data_dir is not None:
        require_whole(checkpoint, "calibration")
    if checkpoint.stored_as == "float16" and scheme.name == "fp16":
        print(f"{source} is stored as float16 already: before and after hold the same weights.")

    quantised = quantised_by(keys, scheme, model, tasks, data_dir, config.seed)
    print(report_table(quantised))
    output = path_of(config, "output") or Path("results") / f"{result_name(source)}-{kind}"
    metadata = replace(
        checkpoint_metadata(checkpoint, tasks),
        scheme=scheme.name,
        scheme_version=scheme.version,
        normalised_score=None,
    )
    full = output / f"{source.stem}-{kind}.safetensors"
    deployed = output / f"{source.stem}-{kind}-deploy.safetensors"
    prior = output / f"{source.stem}-{kind}-prior.safetensors"
    deploy_tensors, prior_tensors = without_target(quantised.tensors), prior_alone(quantised.tensors)
    settings = evaluation_settings(config, output / "videos" if config.save_video else None)
    precision = after_precision(config.precision, device)
    before_planning = planning_of(config, precision="float32")
    after_planning = planning_of(config, precision=precision)
    configuration = {**plain(config), "weights": model_checksum(model, tasks.tasks)}
    for path, tensors in ((full, quantised.tensors), (deployed, deploy_tensors), (prior, prior_tensors)):
        check_writable(path)
        check_same_tensors(path, tensors)
    if config.evaluate:
        for label, computed_in in (("before", "float32"), ("after", precision)):
            check_replaceable(output / f"{label}.json", {**configuration, "precision": computed_in})
    sizes = [("source", source, source.stat().st_size)]
    if len(deploy_tensors) < len(quantised.tensors):
        sizes.append(("with target Q", full, save_checkpoint(full, quantised.tensors, metadata)))
    sizes.append(("without target Q", deployed, save_checkpoint(deployed, deploy_tensors, metadata)))
    if checkpoint.plans:
        sizes.append(("policy prior alone", prior, save_checkpoint(prior, prior_tensors, metadata)))
    rows = [[what, str(path), f"{size:,}", f"{size / 2**20:.2f}"] for what, path, size in sizes]
    print(format_table(["file", "path", "bytes", "MiB"], rows, align="llrr"))
    print(f"largest error of a number: {quantised.largest_error:.2e} of its tensor's largest")
    if not config.evaluate:
        return

    print(f"before: float32 arithmetic; after: {arithmetic(scheme, precision, device)}")
    # Both are made before the first is evaluated: what is wrong with either shows at once.
    agents = {
        "before": (load_agent(source, tasks, device, **before_planning), "float32"),
        "after": (load_agent(deployed, tasks, device, **after_planning), precision),
    }
    before, after = (
        evaluate_to_files(
            agent, settings, label=label, configuration={**configuration, "precision": computed_in}, folder=output
        )
        for label, (agent, computed_in) in agents.items()
    )
    print(comparison_text(compare(before, after)))
    for result in (before, after):
        print(f"{result.label:<7}{score_text(result.score())}")
    score = after.score().value
    if settings.tasks is None and math.isfinite(score):
        scored = replace(metadata, normalised_score=score)
        save_checkpoint(deployed, deploy_tensors, scored)
        if len(deploy_tensors) < len(quantised.tensors):
            save_checkpoint(full, quantised.tensors, scored)
    print(f"results in {output}/")
