"""Agents as folders and on the Hugging Face hub: weights, what they are for, and a page about them.

The folder of a pretrained agent:

    model.safetensors   the weights, with what `load_agent` needs in the file's own metadata
    config.json         the same metadata once more: other programs rewrite weights without it
    README.md           the model card
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tdmpc2.checkpointing import CONFIG_NAME, WEIGHTS_NAME, metadata_text
from tdmpc2.errors import UserError, first_line, printable
from tdmpc2.fileio import atomic_write_text

if TYPE_CHECKING:
    from tdmpc2.agent import Agent
    from tdmpc2.evaluation.results import EvaluationResult

ADDRESS = "hf://"
_CARD_NAME = "README.md"


def fetched(address: str) -> Path:
    """The local file of `hf://OWNER/NAME[@REVISION]/PATH`, or of a repository's `model.safetensors` without a path.

    It is kept in huggingface_hub's cache, and not fetched again.

    Raises:
        UserError: for an address of another form, or a file that cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    owner, _, rest = address.removeprefix(ADDRESS).partition("/")
    name, _, path = rest.partition("/")
    name, at, revision = name.partition("@")
    if not (owner and name and (revision or not at)):
        raise UserError(f"{printable(address)}: expected hf://OWNER/NAME/FILE, or hf://OWNER/NAME@REVISION/FILE.")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", path or WEIGHTS_NAME, revision=revision or None))
    except Exception as error:  # its own errors and its HTTP library's, which differ by release
        reason = printable(f"{type(error).__name__}: {first_line(error)}")
        raise UserError(
            f"{printable(address)} cannot be fetched ({reason}); check its name and the network."
        ) from error


def save_pretrained(
    agent: Agent, folder: str | Path, *, data: str, licence: str, result: EvaluationResult | None = None
) -> None:
    """Writes an agent's folder; files that are there are replaced.

    Args:
        agent: what to write, with the planner that its card names.
        folder: where to.
        data: what the agent learned from, in a sentence of the card.
        licence: the hub's name of the weights' licence, such as "mit".
        result: an evaluation of the agent, for the card's scores.

    Raises:
        UserError: for words that are missing, an evaluation of other tasks, or where nothing can be written.
    """
    folder = Path(folder)
    card = model_card(agent, data=data, licence=licence, result=result)
    weights = folder / WEIGHTS_NAME
    agent.save(weights)
    atomic_write_text(folder / CONFIG_NAME, metadata_text(weights) + "\n")
    atomic_write_text(folder / _CARD_NAME, card)


def push_to_hub(
    agent: Agent,
    repository: str,
    *,
    data: str,
    licence: str,
    result: EvaluationResult | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads an agent's folder (see `save_pretrained`) to `OWNER/NAME` on the hub, made where it is not there.

    Returns:
        The address of the commit.

    Raises:
        UserError: as `save_pretrained`, or when the hub refuses.
    """
    from huggingface_hub import HfApi

    with TemporaryDirectory() as folder:
        save_pretrained(agent, folder, data=data, licence=licence, result=result)
        try:
            hub = HfApi(token=token)
            hub.create_repo(repository, private=private, exist_ok=True)
            return str(
                hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="An agent of TD-MPC-Opt")
            )
        except Exception as error:  # as above
            reason = printable(f"{type(error).__name__}: {first_line(error)}")
            raise UserError(
                f"{printable(repository)} cannot be pushed to ({reason}); check its name and the token (hf auth login)."
            ) from error


def model_card(agent: Agent, *, data: str, licence: str, result: EvaluationResult | None) -> str:
    """The page about an agent, in Markdown with the hub's front matter."""
    from huggingface_hub import EvalResult, ModelCardData

    for name, words in (("data", data), ("licence", licence)):
        if not words.strip():
            raise UserError(f"{name} is empty: a model card says it.")
    tasks, planner = agent.task_set, agent.settings
    if result is not None and not set(result.tasks) <= set(tasks.tasks):
        raise UserError(f"the evaluation is of {', '.join(result.tasks)}, expected tasks of '{tasks.name}'.")
    scored = []
    if result is not None:
        scored = [
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type="dm_control",
                dataset_name=result.task_set,
                metric_type="normalised_score",
                metric_value=round(result.score().value, 2),
            )
        ]
    facts = ModelCardData(
        license=licence,
        library_name="tdmpc2",
        pipeline_tag="reinforcement-learning",
        tags=["world-model", "model-based-reinforcement-learning", "td-mpc2", "dm_control"],
        model_name=f"TD-MPC-Opt {tasks.name}" if scored else None,
        eval_results=scored or None,
    )
    weights = sum(parameter.numel() for parameter in agent.model.parameters())
    known = ", ".join(tasks.tasks)
    parts = [
        f"---\n{facts.to_yaml()}\n---",
        f"# TD-MPC-Opt: {tasks.name}",
        f"A TD-MPC2 world model of {weights / 1e6:.2f}M parameters in float32, for DMControl: {known}.",
        "```python\nimport tdmpc2\n\n"
        'agent = tdmpc2.load_agent("hf://OWNER/NAME")  # this repository, or a folder of its files\n'
        f'env = tdmpc2.make_env("{tasks.tasks[0]}")\n'
        "obs, info = env.reset()\n"
        f'action = agent.act(obs, "{tasks.tasks[0]}")\n```',
        f"## Data\n\n{data.strip()}",
        "## Planner\n\n"
        f"MPPI of {planner.iterations} iterations and {planner.num_samples} samples, {planner.num_pi_trajs} of them "
        f"from the policy prior, {planner.num_elites} elites, horizon {planner.horizon}.",
        f"## Licence\n\n{licence.strip()}",
    ]
    if result is not None:
        parts.insert(4, _scores(result))
    return "\n\n".join(parts) + "\n"


def _scores(result: EvaluationResult) -> str:
    score, returns = result.score(), result.returns()
    interval = (
        "" if score.interval is None else f" (95% interval {score.interval.low:.2f} to {score.interval.high:.2f})"
    )
    rows = [f"| {task} | {sum(found) / len(found):.1f} | {len(found)} |" for task, found in returns.items()]
    return "\n".join(
        [
            f"## Scores\n\nNormalised score {score.value:.2f}{interval}, 0 to 100, a bootstrap over {score.over}.\n",
            "| task | mean return (0 to 1000) | episodes |",
            "| --- | ---: | ---: |",
            *rows,
        ]
    )
