"""An agent: a world model, the tasks it knows, and a planner with its warm starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from tdmpc2.checkpointing import CheckpointMetadata, checkpoint_metadata, load_model, save_checkpoint
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution
from tdmpc2.model import ACTING_PARTS, WorldModel, model_checksum, published_size
from tdmpc2.planner import PLANS, Plan, Planner, PlannerSettings, PlanNoise
from tdmpc2.planner.threads import PlanThreads
from tdmpc2.pretrained import ADDRESS, fetched, push_to_hub, save_pretrained
from tdmpc2.tasks import TaskSet

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModule

    from tdmpc2.evaluation.results import EvaluationResult

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
        metadata: of the file that the model comes from, for `save`.
    """

    def __init__(
        self,
        model: WorldModel,
        task_set: TaskSet,
        planner: PlannerSettings | None = None,
        generator: torch.Generator | None = None,
        execution: Execution | None = None,
        metadata: CheckpointMetadata | None = None,
    ) -> None:
        self.model = model
        self.task_set = task_set
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        discounts = torch.from_numpy(task_set.discounts()).to(self.device)
        self.planner = Planner(model, planner or PlannerSettings(), discounts, execution)
        self.generator = generator
        self._metadata = metadata
        self._mean: Tensor | None = None
        self._named: str | None = None
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

    def __repr__(self) -> str:
        tasks = (
            self.task_set.tasks[0] if len(self.task_set) == 1 else f"{self.task_set.name}, {len(self.task_set)} tasks"
        )
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        s = self.settings
        plans = f"plans {s.iterations} x {s.num_samples} samples of {s.horizon} steps"
        return f"Agent({tasks}; {weights / 1e6:.1f}M parameters; {plans}; {self.device})"

    def save(self, path: str | Path) -> None:
        """Writes the model as it is now, as a float32 .safetensors that `load_agent` takes; not the planner's numbers.

        Raises:
            UserError: for another ending than .safetensors, or where the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: an agent is saved as a .safetensors file; end its name so.")
        dims, tasks = self.model.dims, self.task_set
        known = self._metadata or CheckpointMetadata(tasks.name, tasks.tasks, dims, published_size(dims), step=0)
        # Stored as float32 whatever the file was that it came from; and it may have changed since it was evaluated.
        metadata = replace(known, scheme="float32", scheme_version=1, normalised_score=None)
        save_checkpoint(path, self.model.state_dict(), metadata)

    def save_pretrained(
        self, folder: str | Path, *, data: str, licence: str, result: EvaluationResult | None = None
    ) -> None:
        """Writes weights, metadata and a model card into a folder (see `tdmpc2.pretrained.save_pretrained`)."""
        save_pretrained(self, folder, data=data, licence=licence, result=result)

    def push_to_hub(
        self,
        repository: str,
        *,
        data: str,
        licence: str,
        result: EvaluationResult | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Uploads such a folder to the Hugging Face hub (see `tdmpc2.pretrained.push_to_hub`); its commit's address."""
        return push_to_hub(self, repository, data=data, licence=licence, result=result, private=private, token=token)

    def policy(self, env: Any, *, mpc: bool = True) -> Policy:
        """This agent in an environment as stable-baselines3 and its like want it, by `Policy.predict`.

        Args:
            env: one of this project's, alone, wrapped or in a vector environment (Gymnasium's or stable-baselines3's);
                as wide as its task, or padded to the agent's task set.
            mpc: plan; False acts by the policy prior alone, in one forward pass.

        Raises:
            UserError: for an environment of no task, of one that the agent does not know, or of other widths.
        """
        return Policy(self, env, mpc)

    def act(
        self,
        obs: Tensor | np.ndarray,
        task: str | Tensor | np.ndarray | Sequence[int] | None = None,
        first: bool | Tensor | np.ndarray | Sequence[bool] | None = None,
        greedy: bool = False,
    ) -> Tensor:
        """Plans one decision for N environments, each continuing its last plan.

        Args:
            obs: [N, O], zero-padded to the task set's width. With a task's name, [N, o] or for one environment [o], as
                wide as that task's own.
            task: int64 [N] task ids; may be left out for a single-task agent. Or the name of the task of all.
            first: bool [N], True where a new episode starts, or one for all; default all if N or the named task
                changed or nothing was planned yet, else none.
            greedy: leave the exploration noise out.

        Returns:
            Actions [N, A] in [-1, 1] on the agent's device, 0 where the task has no such action. With a task's name,
            [N, a] or [a], those that the task has.

        Raises:
            UserError: for a wrong shape, an unknown task, an observation that is not finite, or an N that changed
                within episodes.
        """
        if isinstance(task, str):
            return self._act_in(task, obs, first, greedy)
        obs_t, task_t = self.checked(obs, task)
        count = obs_t.shape[0]
        same = self._mean is not None and self._mean.shape[0] == count
        fresh = torch.as_tensor(not same if first is None else first, dtype=torch.bool)
        fresh = fresh.expand(count) if fresh.dim() == 0 else fresh
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
        self._named = None
        return action

    def _act_in(
        self,
        task: str,
        obs: Tensor | np.ndarray,
        first: bool | Tensor | np.ndarray | Sequence[bool] | None,
        greedy: bool,
    ) -> Tensor:
        """`act` in a task's own widths."""
        index = self.task_set.index(task)
        width = self.task_set.obs_dims[index]
        given = torch.as_tensor(obs)
        if given.dim() not in (1, 2) or given.shape[-1] != width:
            raise UserError(
                f"observations have shape {tuple(given.shape)}, expected ({width},) or (N, {width}), as '{task}' has."
            )
        rows = pad(given.reshape(-1, width), (0, self.task_set.obs_dim - width))
        if first is None and task != self._named:
            first = True
        action = self.act(rows, [index] * len(rows), first, greedy)
        self._named = task
        own = action[:, : self.task_set.action_dims[index]]
        return own[0] if given.dim() == 1 else own

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
        return actions, self._next_start(mean)

    @torch.no_grad()
    def plan_and_return(
        self, obs: Tensor, task: Tensor | None, warm_start: Tensor, generator: Generators, *, greedy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`plan`, and [N] the discounted return that the model expects of each plan's mean.

        That is H rewards and the value after them, by two heads, always the same ones, at the prior's mean action.
        """
        actions, mean = self._plans(obs, task, warm_start, generator, greedy=greedy)
        count, dims = len(obs), self.model.dims
        value = self.planner.value(
            self.model.encode(obs, task).unsqueeze(1),
            None if task is None else task.unsqueeze(1),
            mean.unsqueeze(2),
            torch.zeros(count, 1, dims.action_dim, device=self.device),
            torch.arange(dims.num_q, device=self.device, dtype=torch.float32).expand(count, -1),
        )
        return actions, self._next_start(mean), value[:, 0]

    def _next_start(self, mean: Tensor) -> Tensor:
        """The warm start [N, H, A] that plans of this mean leave to the next decision."""
        if not self.settings.warm_start:
            return self.zero_plan(len(mean))
        return torch.cat([mean[:, 1:], torch.zeros_like(mean[:, :1])], dim=1)

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

    def checked(
        self, obs: Tensor | np.ndarray, task: Tensor | np.ndarray | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Observations [N, O] and task ids [N] as `plan` takes them, on the agent's device; raises as `act`."""
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


State = tuple[NDArray[np.float32], ...]


class Policy:
    """An agent in an environment, with the `predict` that stable-baselines3's functions call; by `Agent.policy`.

    `predict` has no memory: what a plan leaves to the next decision goes in and out as `state`.
    """

    def __init__(self, agent: Agent, env: Any, mpc: bool) -> None:
        self.agent = agent
        self.mpc = mpc
        vector = hasattr(env, "get_attr")
        try:
            self.tasks = tuple(env.get_attr("task_name") if vector else [env.unwrapped.task_name])
        except AttributeError:
            raise UserError(f"{env}: no environment of this project, which names its task; see make_env.") from None
        known = agent.task_set
        ids = [known.index(task) for task in self.tasks]
        self._ids = torch.tensor(ids, device=agent.device)
        self._obs_width, self._action_width = int(env.observation_space.shape[-1]), int(env.action_space.shape[-1])
        widths = (self._obs_width, self._action_width)
        own = {(known.obs_dims[index], known.action_dims[index]) for index in ids}
        if own != {widths} and widths != (known.obs_dim, known.action_dim):
            raise UserError(
                f"observations and actions are {widths[0]} and {widths[1]} wide, expected those of "
                f"{', '.join(dict.fromkeys(self.tasks))} or, padded (PadToTaskSet), {known.obs_dim} and "
                f"{known.action_dim}."
            )

    def module(self, *, deterministic: bool = False) -> TensorDictModule:
        """This policy for torchrl: reads "observation" [o] or [N, o], writes "action" as wide as the environment's.

        It keeps its last plan, as `Agent.act` does, and begins anew where "is_init" is True, an entry of torchrl's
        `InitTracker`; without that entry, when N changes.
        """
        from tensordict.nn import TensorDictModule

        warm: Tensor | None = None

        def decide(observation: Tensor, is_init: Tensor | None) -> Tensor:
            nonlocal warm
            rows = observation.reshape(-1, observation.shape[-1])
            if warm is not None and len(warm) != len(rows):
                warm = None
            begins = None if is_init is None else is_init.reshape(-1)
            action, warm = self._decide(rows, warm, begins, deterministic)
            return action.reshape(*observation.shape[:-1], -1).to(observation.device)

        return TensorDictModule(decide, in_keys=["observation", "is_init"], out_keys=["action"])

    def predict(
        self,
        observation: np.ndarray,
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], State | None]:
        """Actions of one decision, and the state to give back with the next.

        Args:
            observation: [o], or [N, o] of N environments, as wide as the environment's.
            state: what the last call returned; None begins plans anew.
            episode_start: bool [N], True where a new episode starts.
            deterministic: leave the exploration noise out (the prior alone: take its mean).

        Returns:
            Actions [a] or [N, a] in [-1, 1], as wide as the environment's; and the state, None without planning.

        Raises:
            UserError: for a wrong shape, or an observation that is not finite.
        """
        given = torch.as_tensor(observation)
        rows = given[None] if given.dim() == 1 else given
        before = None if state is None else torch.as_tensor(state[0])
        begins = None if episode_start is None else torch.as_tensor(episode_start, dtype=torch.bool)
        action, after = self._decide(rows, before, begins, deterministic)
        own = action.cpu().numpy()
        return (own[0] if given.dim() == 1 else own), None if after is None else (after.cpu().numpy(),)

    def _decide(
        self, rows: Tensor, warm: Tensor | None, begins: Tensor | None, greedy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Actions [N, a] for observations [N, o], and the warm start [N, H, A] of the next decision."""
        agent = self.agent
        count = len(self._ids) if len(self._ids) > 1 else len(rows)
        if rows.shape != (count, self._obs_width):
            raise UserError(
                f"observations have shape {tuple(rows.shape)}, expected ({count}, {self._obs_width}), of the "
                "environments that this policy was made for."
            )
        obs, ids = agent.checked(pad(rows, (0, agent.task_set.obs_dim - self._obs_width)), self._ids.expand(count))
        if not self.mpc:
            action = agent.policy_action(obs, ids, agent.generator, greedy=greedy)
            return action[:, : self._action_width].float(), None
        start = agent.zero_plan(count) if warm is None else warm.to(agent.device)
        if begins is not None:
            start = torch.where(begins.to(agent.device).expand(count)[:, None, None], torch.zeros_like(start), start)
        action, after = agent.plan(obs, ids, start, agent.generator, greedy=greedy)
        return action[:, : self._action_width].float(), after


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
        path: a released `.pt` file, this project's `.safetensors`, a folder of `save_pretrained`, or any of them on the
            Hugging Face hub: `hf://OWNER/NAME[@REVISION]/FILE`, `hf://OWNER/NAME` for what `push_to_hub` wrote.
        task: the task set or its name; needed for released files, which do not name theirs.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        planner: the planner's numbers; default the papers'.
        precision: of the planner's products, `float32`, `bfloat16`, or on CUDA `float16`.
        compile: compile the planner's functions: seconds at the first plan, then faster.
        cudagraphs: on CUDA, start a whole plan with one launch.

    Raises:
        CheckpointError: when the file is damaged or does not fit the task set.
        UserError: when the device is not there, or cannot do what is asked, or the hub does not give the file.
    """
    place = resolve_device(device)
    execution = Execution(compile=compile, cudagraphs=cudagraphs, precision=precision)
    execution.check(place, PLANS)  # before a large file is read
    file = fetched(path) if isinstance(path, str) and path.startswith(ADDRESS) else path
    model, tasks, checkpoint = load_model(file, task, place)
    return Agent(model, tasks, planner, execution=execution, metadata=checkpoint_metadata(checkpoint, tasks))
