"""Every distillation objective against an independent implementation, its gradient, and what it may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import make_objective_golden as independent
import numpy as np
import pytest
import torch
from make_golden import Arrays, Reference
from model_fixtures import (
    SMALL_DIMS,
    arrays,
    assert_close,
    gammas,
    golden,
    golden_batch,
    golden_update_noise,
    group,
    small_model,
    small_tasks,
    tensors,
)
from torch import Tensor, nn

from tdmpc2.data.batch import Batch
from tdmpc2.distillation import DatasetRewards, Draws, LabelledRewards, Lessons, Teacher, random_teacher
from tdmpc2.distillation.teacher import TeacherView
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution
from tdmpc2.execution.capabilities import compile_problem
from tdmpc2.losses import LossTerms, LossWeights, policy_terms, world_model_losses
from tdmpc2.model import ACTING_PARTS, WorldModel
from tdmpc2.objectives import (
    OBJECTIVES,
    LatentLinearDistillation,
    LatentPcaDistillation,
    LatentRelationalDistillation,
    Objective,
    PolicyDistillation,
    PrincipalComponents,
    RewardAllDistillation,
    RewardDistillation,
    RewardLogitsDistillation,
    RewardOffDataDistillation,
    ValueDistillation,
)
from tdmpc2.training.learner import Learner, OptimiserSettings

FIGURES = arrays(independent.FILE)
TEACHER_DIMS = replace(SMALL_DIMS, latent_dim=independent.TEACHER_LATENT)
SIMPLE: dict[str, Objective] = {
    "reward": RewardDistillation(1.0),
    "reward_all": RewardAllDistillation(1.0),
    "reward_logits": RewardLogitsDistillation(1.0),
    "reward_off_data": RewardOffDataDistillation(1.0, noise=independent.NOISE),
    "value": ValueDistillation(1.0),
    "relational": LatentRelationalDistillation(1.0),
    "linear_teacher": LatentLinearDistillation(1.0),
    "linear_student": LatentLinearDistillation(1.0, side="student"),
}


class Stored(Draws):
    """The stored random numbers in the place of new ones."""

    def __init__(self, device: str) -> None:
        super().__init__(0, 0, 5, slice(0, 5))
        self._held = tensors(group(FIGURES, "draws"), device)

    def uniform(self, width: int, device: torch.device) -> Tensor:
        return self._held["uniform"]

    def normal(self, width: int, device: torch.device) -> Tensor:
        return self._held["normal"]


def golden_teacher(device: str = "cpu") -> Teacher:
    model = WorldModel(TEACHER_DIMS, small_tasks().action_masks(), ACTING_PARTS)
    model.load_state_dict(tensors(group(FIGURES, "teacher")))
    return Teacher(model.to(device), small_tasks(), small_tasks())


def bound(objective: Objective, device: str = "cpu") -> Objective:
    """With the stored projection, where it has one."""
    made = objective.bound(SMALL_DIMS, TEACHER_DIMS, 0)
    if isinstance(made, LatentLinearDistillation):
        assert isinstance(made.module, nn.Linear)
        stored, way = tensors(group(FIGURES, "draws")), "to_student" if made.side == "teacher" else "to_teacher"
        made.module.load_state_dict({"weight": stored[way], "bias": stored[f"{way}_bias"]})
    if made.module is not None:
        made.module.to(device)
    return made


def taught(objective: Objective, teacher: Teacher, batch: Batch) -> Batch:
    view = teacher.view(batch, objective.observations(3), Stored(str(batch.task.device)))
    with torch.no_grad():
        said = objective.ask(view)
    assert not any(values.requires_grad for values in said.values())
    return replace(batch, targets={f"{objective.name}.{what}": values for what, values in said.items()})


def loss_of(objective: Objective, model: WorldModel, batch: Batch, device: str = "cpu") -> Tensor:
    terms, noise = LossTerms(LossWeights(), (objective,)), golden_update_noise(golden(), device)
    return world_model_losses(model, batch, gammas(device), terms, noise).distillation[objective.name]


@pytest.mark.parametrize("name", SIMPLE)
def test_losses_equal_the_independent_implementation(name: str, device: str) -> None:
    objective, batch = bound(SIMPLE[name], device), golden_batch(golden(), device)
    found = loss_of(objective, small_model(device), taught(objective, golden_teacher(device), batch), device)
    assert_close(found, FIGURES[f"losses/{name}"], name=name)


def test_the_policy_s_loss_equals_the_independent_implementation(device: str) -> None:
    objective, batch = PolicyDistillation(1.0), golden_batch(golden(), device)
    given = taught(objective, golden_teacher(device), batch)
    latents = torch.from_numpy(FIGURES["latents"]).float().to(device)
    noise = golden_update_noise(golden(), device)
    terms = policy_terms(small_model(device), latents, batch.task, 0.5, noise, (objective,), given)
    assert_close(terms.distillation["d_policy"], FIGURES["losses/policy"])
    assert terms.added is not None
    scale = torch.ones(1, device=device)
    plain = policy_terms(small_model(device), latents, batch.task, 0.5, noise).loss(scale, 1e-4)
    torch.testing.assert_close(terms.loss(scale, 1e-4), plain + terms.added)


def test_stored_figures_are_those_of_the_independent_implementation() -> None:
    batch, draws = group(golden(), "batch"), group(FIGURES, "draws")
    says = independent.teacher_says(Reference(group(FIGURES, "teacher")), batch, draws)
    for name, value in says.items():
        np.testing.assert_allclose(value, FIGURES[f"says/{name}"], rtol=1e-5, atol=1e-6, err_msg=name)
    losses = independent.student_losses(Reference(group(golden(), "weights")), batch, says, draws)
    for name, value in losses.items():
        assert value == pytest.approx(float(FIGURES[f"losses/{name}"]), rel=1e-5), name


def slope_of(loss: Callable[[float], float], step: float = 1e-4) -> float:
    return (loss(step) - loss(-step)) / (2 * step)


@pytest.mark.parametrize("name", SIMPLE)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Of the independent implementation, along random directions of each part of the student."""
    objective, teacher = bound(SIMPLE[name]), golden_teacher()
    model, batch, says = small_model(), golden_batch(golden()), group(FIGURES, "says")
    model.limit_task_embedding(batch.task)
    weights = {n: value.numpy().copy() for n, value in model.state_dict().items()}
    loss = loss_of(objective, model, taught(objective, teacher, batch))
    parameters = dict(model.named_parameters())
    names = [n for n in parameters if not n.startswith(("policy_head", "target_q"))]
    gradients = torch.autograd.grad(loss, [parameters[n] for n in names], allow_unused=True)
    found = {n: torch.zeros_like(parameters[n]) if g is None else g for n, g in zip(names, gradients, strict=True)}
    assert float(sum(g.abs().sum() for n, g in found.items() if n.startswith("encoder"))) > 0
    rng = np.random.default_rng(0)
    for part in ("encoder", "dynamics", "reward_head", "q_heads"):
        direction: Arrays = {n: rng.normal(size=weights[n].shape) * 0.1 for n in names if n.startswith(part)}

        def nudged(by: float, direction: Arrays = direction) -> float:
            student = Reference(weights)
            for n, change in direction.items():
                student.w[n] = student.w[n] + by * change
            return independent.student_losses(student, group(golden(), "batch"), says, group(FIGURES, "draws"))[name]

        slope = sum(float((found[n].double() * torch.from_numpy(d)).sum()) for n, d in direction.items())
        assert slope == pytest.approx(slope_of(nudged), rel=2e-3, abs=1e-6), part


def test_the_policy_s_gradient_equals_finite_differences_and_stays_in_the_policy() -> None:
    objective, model, batch = PolicyDistillation(1.0), small_model(), golden_batch(golden())
    given = taught(objective, golden_teacher(), batch)
    model.limit_task_embedding(batch.task)
    weights = {n: value.numpy().copy() for n, value in model.state_dict().items()}
    latents = torch.from_numpy(FIGURES["latents"]).float()
    terms = policy_terms(model, latents, batch.task, 0.5, golden_update_noise(golden()), (objective,), given)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(terms.distillation["d_policy"], list(parameters.values()), allow_unused=True)
    found = {n: g for n, g in zip(parameters, gradients, strict=True) if g is not None}
    assert found and all(n.startswith("policy_head") for n in found)
    rng = np.random.default_rng(0)
    direction = {n: rng.normal(size=weights[n].shape) * 0.1 for n in found}

    def nudged(by: float) -> float:
        student = Reference(weights)
        for n, change in direction.items():
            student.w[n] = student.w[n] + by * change
        return independent.policy_loss(student, FIGURES["latents"], group(golden(), "batch"), group(FIGURES, "says"))

    slope = sum(float((found[n].double() * torch.from_numpy(d)).sum()) for n, d in direction.items())
    assert slope == pytest.approx(slope_of(nudged), rel=2e-3)


# -- principal components --------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_all_batches_together() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 12)) * np.linspace(3, 0.3, 12) @ rng.normal(size=(12, 12)) + 5
    batches = [torch.from_numpy(part).float() for part in np.split(values, 8)]
    found = PrincipalComponents(12, 4)
    found.fit(batches)
    _, _, rows = np.linalg.svd(values - values.mean(0))
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-5)
    for row, expected in zip(found.components.double().numpy(), rows, strict=False):
        sign = np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(row, sign * expected, atol=1e-4)
    flat = torch.from_numpy(values).float()
    np.testing.assert_allclose(
        found(flat).var(0), (np.linalg.svd(values - values.mean(0))[1] ** 2 / 199)[:4], rtol=1e-3
    )
    whole = PrincipalComponents(12, 12)
    whole.fit(batches)
    torch.testing.assert_close(whole.inverse(whole(flat)), flat, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="3 latents cannot give 4 principal components; raise pca_batches"):
        PrincipalComponents(12, 4).fit([batches[0][:3]])


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_pca_compares_with_the_teacher_s_components(side: str) -> None:
    objective = LatentPcaDistillation(1.0, side=side, batches=8).bound(SMALL_DIMS, TEACHER_DIMS, 0)
    teacher, batch, model = golden_teacher(), golden_batch(golden()), small_model()
    assert isinstance(objective, LatentPcaDistillation) and objective.fit_batches == 8
    views = (teacher.view(replace(batch, obs=batch.obs * (1 + 0.2 * n)), 1, Stored("cpu")) for n in range(8))
    with torch.no_grad():
        objective.fit(views)
    found = loss_of(objective, model, taught(objective, teacher, batch))
    pca, mine, said = objective.module, FIGURES["latents"][1], FIGURES["says/next_latent"]
    assert isinstance(pca, PrincipalComponents)
    mean, rows = pca.mean.double().numpy(), pca.components.double().numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(16), atol=1e-5)
    if side == "teacher":
        expected = ((mine - (said - mean) @ rows.T) ** 2).mean()
    else:
        expected = ((mine @ rows + mean - said) ** 2).mean()
    assert_close(found, expected, tolerance=1e-3)


def test_models_that_do_not_go_together_are_refused() -> None:
    narrow = replace(SMALL_DIMS, latent_dim=8)
    with pytest.raises(UserError, match="d_latent_pca: the teacher's latent of 8 numbers has fewer components"):
        LatentPcaDistillation(0.4).bound(SMALL_DIMS, narrow, 0)
    with pytest.raises(UserError, match="d_reward_logits compares bins, but the student has num_bins"):
        RewardLogitsDistillation(0.4).bound(SMALL_DIMS, replace(TEACHER_DIMS, num_bins=51), 0)


# -- the teacher's side ----------------------------------------------------------------------------------------------


def lessons_of(*objectives: Objective, seed: int = 1, part: slice = slice(0, 5)) -> Lessons:
    return Lessons(golden_teacher(), objectives, seed, 5, part)


def test_questions_depend_on_seed_step_and_who_asks_alone() -> None:
    batch = golden_batch(golden())
    off, value = RewardOffDataDistillation(0.1), ValueDistillation(0.1)
    first = lessons_of(off).of(batch, 7).targets
    assert first.keys() == {"d_reward_off_data.action", "d_reward_off_data.reward"}
    both = lessons_of(value, off, RewardDistillation(0.4), PolicyDistillation(1.0)).of(batch, 7).targets
    for name, values in first.items():
        torch.testing.assert_close(both[name], values)
    actions = first["d_reward_off_data.action"]
    for other, step in ((lessons_of(off), 8), (lessons_of(off, seed=2), 7)):
        assert not torch.equal(other.of(batch, step).targets["d_reward_off_data.action"], actions)
    own = torch.from_numpy(small_tasks().action_masks())[batch.task].bool()
    assert float(actions.abs().max()) <= 1 and (actions[:, ~own] == 0).all() and (actions[:, own] != 0).all()


def test_a_part_of_the_batch_is_asked_as_in_the_whole() -> None:
    batch, rows = golden_batch(golden()), slice(2, 5)
    part = Batch(batch.obs[:, rows], batch.action[:, rows], batch.reward[:, rows], batch.task[rows])
    for objective in (RewardOffDataDistillation(0.1), ValueDistillation(0.1), PolicyDistillation(1.0)):
        whole = lessons_of(objective).of(batch, 3).targets
        for name, values in lessons_of(objective, part=rows).of(part, 3).targets.items():
            torch.testing.assert_close(values, whole[name][:, rows])


def test_the_teacher_computes_what_is_asked_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, counted = golden_batch(golden()), []
    forward = Teacher.encode

    def encode(self: Teacher, obs: Tensor, ids: Tensor | None) -> Tensor:
        counted.append(len(obs))
        return forward(self, obs, ids)

    monkeypatch.setattr(Teacher, "encode", encode)
    lessons_of(RewardDistillation(0.4)).of(batch, 0)
    assert counted == [1], "the first observation alone"
    counted.clear()
    lessons_of(*(kind(0.1) for kind in OBJECTIVES)).of(batch, 0)
    assert counted == [4]


def test_parts_of_the_teacher() -> None:
    reward = random_teacher(TEACHER_DIMS, small_tasks(), small_tasks(), 1)
    assert reward.model.parts == {"encoder", "reward_head"}
    for kind in OBJECTIVES:
        teacher = random_teacher(TEACHER_DIMS, small_tasks(), small_tasks(), 1, parts=kind.parts)
        assert teacher.model.parts == {*kind.parts}
        said = Lessons(teacher, [kind(0.1)], 1, 5, slice(0, 5)).of(golden_batch(golden()), 0).targets
        assert all(values.isfinite().all() for values in said.values()) and len(said) > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_objective_is_asked_in_either_precision(precision: str) -> None:
    teacher = random_teacher(TEACHER_DIMS, small_tasks(), small_tasks(), 1, precision=precision, parts=ACTING_PARTS)
    objectives = [kind(0.1) for kind in OBJECTIVES]
    said = Lessons(teacher, objectives, 1, 5, slice(0, 5)).of(golden_batch(golden()), 0).targets
    assert {values.dtype for values in said.values()} == {torch.float32}


def test_known_rewards_stand_for_a_teacher_where_they_suffice() -> None:
    batch = golden_batch(golden())
    objectives = (RewardDistillation(0.4), RewardAllDistillation(0.4))
    said = Lessons(DatasetRewards(), objectives, 1, 5, slice(0, 5)).of(batch, 0).targets
    assert torch.equal(said["distillation.reward"], batch.reward[0])
    assert torch.equal(said["d_reward_all.reward"], batch.reward)
    labels = torch.rand(3, 5, 1)
    said = Lessons(LabelledRewards(), objectives, 1, 5, slice(0, 5)).of(replace(batch, labels=labels), 0).targets
    assert torch.equal(said["distillation.reward"], labels[0]) and torch.equal(said["d_reward_all.reward"], labels)
    for source, name in ((DatasetRewards(), "dataset"), (LabelledRewards(), "labels")):
        for kind in OBJECTIVES:
            if not kind.rewards_suffice:
                with pytest.raises(
                    UserError, match=f"{kind.name} asks more of a teacher than the rewards that teacher={name}"
                ):
                    Lessons(source, [kind(0.1)], 1, 5, slice(0, 5))


# -- the update ------------------------------------------------------------------------------------------------------


def whole_learner(execution: Execution | None = None) -> tuple[Learner, Lessons, Teacher]:
    teacher = golden_teacher()
    model = small_model()
    objectives = tuple(kind(0.2).bound(model.dims, teacher.dims, 1) for kind in OBJECTIVES)
    lessons = Lessons(teacher, objectives, 1, 5, slice(0, 5))
    batch = golden_batch(golden())
    lessons.fit(replace(batch, obs=batch.obs * (1 + 0.01 * n)) for n in range(64))
    learner = Learner(
        model, gammas(), LossWeights(), OptimiserSettings(), 1, execution or Execution(), objectives=objectives
    )
    return learner, lessons, teacher


def test_an_update_with_all_objectives_reaches_the_student_alone() -> None:
    learner, lessons, teacher = whole_learner()
    before = {n: value.clone() for n, value in teacher.model.state_dict().items()}
    own = {n: value.clone() for n, value in learner.own.state_dict().items()}
    assert {n.split(".")[0] for n in own} == {"d_latent_linear", "d_latent_pca"}
    metrics = {}
    for step in range(3):
        metrics = learner.update(lessons.of(golden_batch(golden()), step))
    assert {f"{kind.name}_loss" for kind in OBJECTIVES} <= metrics.keys()
    assert all(value.isfinite() for value in metrics.values())
    world = sum(0.2 * metrics[f"{kind.name}_loss"] for kind in OBJECTIVES if not kind.of_policy)
    torch.testing.assert_close(metrics["total_loss"], metrics["original_loss"] + world)
    assert all(torch.equal(value, before[n]) for n, value in teacher.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    moved = {n for n, value in learner.own.state_dict().items() if not torch.equal(value, own[n])}
    assert moved == {"d_latent_linear.weight", "d_latent_linear.bias"}, "components stay as they were fitted"


def test_what_objectives_learned_is_resumed() -> None:
    learner, lessons, _ = whole_learner()
    learner.update(lessons.of(golden_batch(golden()), 0))
    state = {**learner.state_dict(), "model": {n: v.clone() for n, v in learner.model.state_dict().items()}}
    kept = {n: value.clone() for n, value in learner.own.state_dict().items()}
    other, _, _ = whole_learner()
    for value in other.own.state_dict().values():
        value.zero_()
    other.load_state_dict(state)
    assert all(torch.equal(value, kept[n]) for n, value in other.own.state_dict().items())


@pytest.mark.timeout(1200)
def test_compiled_with_all_objectives_equals_eager() -> None:
    if compile_problem(torch.device("cpu")) is not None:
        pytest.skip("no C++ compiler for torch.compile")
    found = []
    for execution in (Execution(), Execution(compile=True)):
        learner, lessons, _ = whole_learner(execution)
        found.append([learner.update(lessons.of(golden_batch(golden()), step)) for step in range(2)])
    for eager, compiled in zip(*found, strict=True):
        for name, value in eager.items():
            torch.testing.assert_close(compiled[name], value, rtol=2e-4, atol=1e-5, msg=name)


def test_views_do_not_ask_what_is_not_there() -> None:
    teacher = random_teacher(TEACHER_DIMS, small_tasks(), small_tasks(), 1)
    view = TeacherView(teacher, golden_batch(golden()), 1, Stored("cpu"))
    with pytest.raises(UserError, match="no weights for 'dynamics'"):
        view.next_latents()
