"""An agent: a world model, the tasks it knows, and a planner with its warm starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdmpc2.checkpointing import load_model
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution
from tdmpc2.model import ACTING_PARTS, WorldModel, model_checksum
from tdmpc2.planner import PLANS, Plan, Planner, PlannerSettings, PlanNoise
from tdmpc2.planner.threads import PlanThreads
from tdmpc2.tasks import TaskSet

# Valuing about this many trajectories at a time keeps a CPU's second-level caches warm.
_CPU_TRAJECTORIES = 512
# A GPU wants as many as fit: this many bytes for one hidden activation of all Q heads, of which about three are alive.
_GPU_ACTIVATION_BYTES = 1 << 30

Generators = torch.Generator | Sequence[torch.Generator] | None


class Agent:
    """Acts in N environments at once.

    Args:
        model: a world model in eval mode, on the device to plan on.
        task_set: names the tasks, gives widths and discounts.
        planner: the planner's numbers; default the papers'.
        generator: source of all of `act`'s noise, on the model's device; default torch's.
        execution: arithmetic and way of running of the planner; default eager float32.
    """

    def __init__(
        self,
        model: WorldModel,
        task_set: TaskSet,
        planner: PlannerSettings | None = None,
        generator: torch.Generator | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.model = model
        self.task_set = task_set
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        discounts = torch.from_numpy(task_set.discounts()).to(self.device)
        self.planner = Planner(model, planner or PlannerSettings(), discounts, execution)
        self.generator = generator
        self._mean: Tensor | None = None
        self._plan_threads: PlanThreads | None = None

    @property
    def settings(self) -> PlannerSettings:
        return self.planner.settings

    def check_plans(self) -> None:
        """Raises a `UserError` for a policy prior alone, which cannot plan."""
        for part in ACTING_PARTS:
            self.model.part(part)

    def checksum(self) -> str:
        """16 hexadecimal digits that stand for the model's weights and its tasks."""
        return model_checksum(self.model, self.task_set.tasks)

    def act(
        self,
        obs: Tensor | np.ndarray,
        task: Tensor | np.ndarray | Sequence[int] | None = None,
        first: Tensor | np.ndarray | Sequence[bool] | None = None,
        greedy: bool = False,
    ) -> Tensor:
        """Plans one decision for N environments, each continuing its last plan.

        Args:
            obs: [N, O], zero-padded to the task set's width.
            task: int64 [N] task ids; may be left out for a single-task agent.
            first: bool [N], True where a new episode starts; default all if N changed or nothing was
                planned yet, else none.
            greedy: leave the exploration noise out.

        Returns:
            Actions [N, A] in [-1, 1] on the agent's device, 0 where the task has no such action.

        Raises:
            UserError: for a wrong shape, an unknown task id, an observation that is not finite, or an N that changed
                within episodes.
        """
        obs_t, task_t = self._inputs(obs, task)
        count = obs_t.shape[0]
        same = self._mean is not None and self._mean.shape[0] == count
        fresh = torch.full((count,), not same) if first is None else torch.as_tensor(first, dtype=torch.bool)
        if fresh.shape != (count,):
            raise UserError(f"first has shape {tuple(fresh.shape)}, expected ({count},), one for each observation.")
        if not same and not bool(fresh.all()):
            raise UserError(
                f"{count} environments, but the last plan was for "
                f"{0 if self._mean is None else self._mean.shape[0]}: mark every one as first."
            )
        warm = self.zero_plan(count) if not same or self._mean is None else self._mean
        warm = torch.where(fresh.to(self.device)[:, None, None], torch.zeros_like(warm), warm)
        action, self._mean = self.plan(obs_t, task_t, warm, self.generator, greedy=greedy)
        return action

    def _environments_at_a_time(self) -> int:
        """How many environments one pass of the planner values, by what the device's caches or memory hold."""
        samples = self.settings.num_samples
        if self.device.type == "cpu":
            return max(1, _CPU_TRAJECTORIES // samples)
        dims = self.model.dims
        return max(
            1, _GPU_ACTIVATION_BYTES // (samples * dims.num_q * dims.mlp_dim * self.planner.execution.dtype.itemsize)
        )

    def _threads(self, parts: int) -> PlanThreads | None:
        """Threads to plan so many parts at once; None on a GPU, or for a single part."""
        total = torch.get_num_threads()
        workers = min(parts, total)
        if self.device.type != "cpu" or workers < 2:
            return None
        self.planner.fused()  # laid out once, here, before the threads ask for it
        if self._plan_threads is None or (self._plan_threads.workers, self._plan_threads.total) != (workers, total):
            self._plan_threads = PlanThreads(workers)
        return self._plan_threads

    def zero_plan(self, count: int) -> Tensor:
        """The warm start [count, H, A] of new episodes: zeros."""
        shape = (count, self.settings.horizon, self.task_set.action_dim)
        return torch.zeros(shape, device=self.device)

    @torch.no_grad()
    def plan(
        self,
        obs: Tensor,
        task: Tensor | None,
        warm_start: Tensor,
        generator: Generators,
        *,
        greedy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Stateless planning: (actions [N, A], warm start [N, H, A] of the next decision).

        Args:
            obs: [N, O] on the agent's device.
            task: int64 [N] or None.
            warm_start: [N, H, A] from the last decision, zeros for a new episode.
            generator: one for all, or one for each environment, whose noise then ignores its neighbours.
            greedy: leave the exploration noise out.

        Raises:
            UserError: for an observation that holds nan or an infinity; names it and its task.
        """
        actions, mean = self._plans(obs, task, warm_start, generator, greedy=greedy)
        if not self.settings.warm_start:
            return actions, self.zero_plan(len(obs))
        return actions, torch.cat([mean[:, 1:], torch.zeros_like(mean[:, :1])], dim=1)

    @torch.no_grad()
    def plan_mean(self, obs: Tensor, task: Tensor | None, generator: Generators) -> Tensor:
        """The mean of a plan's first action, [N, A] in [-1, 1], planned from each state alone: no plan goes before.

        What a plan has to say of a state, where its action is one drawn candidate. Arguments and errors as `plan`.
        """
        return self._plans(obs, task, self.zero_plan(len(obs)), generator, greedy=True)[1][:, 0]

    def _plans(
        self, obs: Tensor, task: Tensor | None, warm_start: Tensor, generator: Generators, *, greedy: bool
    ) -> tuple[Tensor, Tensor]:
        """Actions [N, A] and means [N, H, A], as many plans at a time as suit the device."""
        self._check_finite(obs, task)
        count = obs.shape[0]
        chunk = self._environments_at_a_time()
        parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]

        def noise(part: slice) -> PlanNoise:
            if generator is not None and not isinstance(generator, torch.Generator):
                return self.planner.draw_noise(part.stop - part.start, generator[part])
            return self.planner.draw_noise(part.stop - part.start, generator)

        def plan_of(given: tuple[slice, PlanNoise]) -> Plan:
            part, drawn = given
            part_task = None if task is None else task[part]
            return self.planner.plan(obs[part], part_task, warm_start[part], drawn, greedy=greedy)

        drawn = ((part, noise(part)) for part in parts)
        threads = self._threads(len(parts))
        plans = [plan_of(given) for given in drawn] if threads is None else threads.map(plan_of, drawn)
        return torch.cat([each.action for each in plans]), torch.cat([each.mean for each in plans])

    @torch.no_grad()
    def policy_action(self, obs: Tensor, task: Tensor | None, generator: Generators, *, greedy: bool = False) -> Tensor:
        """Actions [N, A] of the policy prior alone, no planning; greedy takes its mean; raises as `plan`."""
        self._check_finite(obs, task)
        shape = (obs.shape[0], self.task_set.action_dim)
        if generator is None or isinstance(generator, torch.Generator):
            noise = torch.randn(shape, generator=generator, device=self.device)
        else:
            noise = torch.stack([torch.randn(shape[1], generator=g, device=self.device) for g in generator])
        return self.planner.prior_action(obs, task, torch.zeros_like(noise) if greedy else noise)

    def _check_finite(self, obs: Tensor, task: Tensor | None) -> None:
        finite = obs.isfinite()
        if bool(finite.all()):
            return
        index, column = (int(i) for i in (~finite).nonzero()[0])
        name = self.task_set.tasks[0 if task is None else int(task[index])]
        raise UserError(
            f"observation {index} ({name}) holds {float(obs[index, column])} in column {column}, expected finite "
            "numbers: check what made it."
        )

    def _inputs(
        self, obs: Tensor | np.ndarray, task: Tensor | np.ndarray | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        obs_t = torch.as_tensor(obs).to(self.device, self.dtype)
        if obs_t.dim() != 2 or obs_t.shape[1] != self.task_set.obs_dim:
            raise UserError(
                f"observations have shape {tuple(obs_t.shape)}, expected (N, {self.task_set.obs_dim}), zero-padded."
            )
        if not self.task_set.multitask:
            return obs_t, None
        if task is None:
            raise UserError(f"this agent knows {len(self.task_set)} tasks: give the task ids, int64 [N].")
        ids = torch.as_tensor(task)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UserError(f"task holds {str(ids.dtype).removeprefix('torch.')} values, expected integer ids.")
        if ids.shape != (obs_t.shape[0],):
            raise UserError(f"task has shape {tuple(ids.shape)}, expected ({obs_t.shape[0]},), one id each.")
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < len(self.task_set)):
            raise UserError(
                f"task ids run from {int(ids.min())} to {int(ids.max())}; "
                f"'{self.task_set.name}' has ids 0 to {len(self.task_set) - 1}."
            )
        return obs_t, ids.to(self.device, torch.int64)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: for a name that torch does not know or a device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device} is not a device name; use auto, cpu, cuda or cuda:1.") from error
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device={device}, but torch sees {torch.cuda.device_count()} CUDA devices; use device=cpu.")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device={device} is not supported; use auto, cpu or cuda.")
    return found


def load_agent(
    path: str | Path,
    task: str | TaskSet | None = None,
    device: str | torch.device = "auto",
    planner: PlannerSettings | None = None,
    precision: str = "float32",
    compile: bool = False,
    cudagraphs: bool = False,
) -> Agent:
    """An agent from a checkpoint of any supported format, with target Q where the file has it.

    Args:
        path: a released `.pt` file or this project's `.safetensors`.
        task: the task set or its name; needed for released files, which do not name theirs.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        planner: the planner's numbers; default the papers'.
        precision: of the planner's products, `float32`, `bfloat16`, or on CUDA `float16`.
        compile: compile the planner's functions: seconds at the first plan, then faster.
        cudagraphs: on CUDA, start a whole plan with one launch.

    Raises:
        CheckpointError: when the file is damaged or does not fit the task set.
        UserError: when the device is not there, or cannot do what is asked.
    """
    place = resolve_device(device)
    execution = Execution(compile=compile, cudagraphs=cudagraphs, precision=precision)
    execution.check(place, PLANS)  # before a large file is read
    model, tasks, _ = load_model(path, task, place)
    return Agent(model, tasks, planner, execution=execution)
