"""What starts the jobs of a sweep beside Hydra's basic launcher: released plugins, with defaults that fit runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from tdmpc2.errors import UserError

_SUBMITIT = {
    "name": "tdmpc2-${hydra.job.name}",
    "timeout_min": 7 * 24 * 60,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # So many runs at a time, in processes of this machine.
    "joblib": {
        "n_jobs": 2,
        "batch_size": 1,  # joblib would hand out several at a time after some that were skipped
    },
    # As SLURM's jobs are, but processes of this machine, all at a time: to try it.
    "submitit_local": _SUBMITIT,
    "submitit_slurm": {
        **_SUBMITIT,
        "timeout_min": 4 * 60,
        "max_num_timeout": 100,  # times that a run whose minutes are over is queued again, and goes on from its state
        "cpus_per_task": 4,  # one for the updates, the others for simulators
        "gpus_per_node": 1,
        "mem_gb": 32,
        "array_parallelism": 64,  # runs at a time
    },
}
"""Where they differ from the plugins' own: `hydra.launcher.<key>=…` sets any of them, and all others."""
_PACKAGES = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}


def register_launchers(arguments: Sequence[str]) -> None:
    """Gives the installed launchers their `DEFAULTS`.

    Raises:
        UserError: for one named by `hydra/launcher=…` that is not installed.
    """
    installed = [name for name, package in _PACKAGES.items() if _is_installed(package)]
    for name in (value for key, _, value in (a.partition("=") for a in arguments) if key == "hydra/launcher"):
        if name in _PACKAGES and name not in installed:
            raise UserError(
                f"hydra/launcher={name} is not installed: pip install {_PACKAGES[name].replace('_', '-')} "
                '(in a clone: pip install -e ".[launchers]").'
            )
    Plugins.instance()  # finds them, which registers their configurations
    store = ConfigStore.instance()
    for name in installed:
        # A file of the same name in config/ would do, but Hydra warns of that in every job.
        node = OmegaConf.merge(store.load(f"hydra/launcher/{name}.yaml").node, OmegaConf.create(dict(DEFAULTS[name])))
        store.store(group="hydra/launcher", name=name, node=node, provider="tdmpc2")


def _is_installed(package: str) -> bool:
    return find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{package}") is not None
