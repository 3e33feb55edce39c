"""The eleven MT30 tasks that dm_control does not have (TD-MPC2, appendix): its own models with other rewards.

Models are dm_control's, edited in memory. What a task does not name here (physics, observations, initial
states, time limit) it inherits from the dm_control task of its domain. Speeds are in m/s, heights and
distances in m, angular velocities in rad/s. Only `dmcontrol` imports this module, because importing it
imports dm_control.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, cheetah, hopper, pendulum, reacher, walker
from dm_control.utils.rewards import tolerance
from lxml import etree

_INF = float("inf")
_FALLEN_MARGIN = 0.6
_HEIGHT = 1.2


def _longer_floor(domain: Any, floor: str, half_length: float) -> tuple[bytes, dict[str, bytes]]:
    """A domain's model and assets, its floor long enough to run backwards: `half_length` in m."""
    xml, assets = domain.get_model_and_assets()
    root = etree.fromstring(xml)
    geom = root.find(f"./worldbody/geom[@name='{floor}']")
    _, half_width, spacing = geom.get("size").split()
    geom.set("size", f"{half_length} {half_width} {spacing}")
    return etree.tostring(root), assets


# Walker


class BackwardsWalker(walker.PlanarWalker):
    """Stand upright and walk or run backwards at `speed` or faster."""

    def __init__(self, speed: float, random: int | None) -> None:
        super().__init__(move_speed=speed, random=random)
        self._speed = speed

    def get_reward(self, physics: Any) -> float:
        standing = tolerance(physics.torso_height(), bounds=(_HEIGHT, _INF), margin=_FALLEN_MARGIN)
        stand = (3 * standing + (1 + physics.torso_upright()) / 2) / 4
        move = tolerance(
            physics.horizontal_velocity(),
            bounds=(-_INF, -self._speed),
            margin=self._speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return stand * (5 * move + 1) / 6


def _walker(speed: float) -> Callable[[int | None], control.Environment]:
    def build(seed: int | None) -> control.Environment:
        physics = walker.Physics.from_xml_string(*_longer_floor(walker, "floor", 500))
        return control.Environment(physics, BackwardsWalker(speed, seed), time_limit=25, control_timestep=0.025)

    return build


# Cheetah


class BackwardsCheetah(cheetah.Cheetah):
    """Run backwards at 8 m/s or faster."""

    def get_reward(self, physics: Any) -> float:
        return tolerance(physics.speed(), bounds=(-_INF, -8), margin=8, value_at_margin=0, sigmoid="linear")


class OneFootedCheetah(cheetah.Cheetah):
    """Run at 6 m/s or faster with the torso and one foot, `foot`, held up."""

    def __init__(self, foot: str, random: int | None) -> None:
        super().__init__(random=random)
        self._foot = foot

    def get_reward(self, physics: Any) -> float:
        foot, torso = physics.named.data.xpos[[self._foot, "torso"], "z"]
        foot_up = tolerance(foot, bounds=(_HEIGHT, _INF), margin=_FALLEN_MARGIN)
        torso_up = tolerance(torso, bounds=(_HEIGHT, _INF), margin=_FALLEN_MARGIN)
        up = (3 * foot_up + 2 * torso_up) / 5
        move = tolerance(physics.speed(), bounds=(6, _INF), margin=6, value_at_margin=0, sigmoid="linear")
        return up * (5 * move + 1) / 6


class JumpingCheetah(cheetah.Cheetah):
    """Lift torso and feet while staying in place."""

    def get_reward(self, physics: Any) -> float:
        front, back, torso = physics.named.data.xpos[["ffoot", "bfoot", "torso"], "z"]
        up = [tolerance((torso + foot) / 2, bounds=(_HEIGHT, _INF), margin=_FALLEN_MARGIN) for foot in (front, back)]
        still = tolerance(physics.speed(), bounds=(-0.5, 0.5), margin=0.5, value_at_margin=0, sigmoid="linear")
        return (5 * sum(up) / 2 + still) / 6


def _cheetah(make_task: Callable[[int | None], Any]) -> Callable[[int | None], control.Environment]:
    def build(seed: int | None) -> control.Environment:
        physics = cheetah.Physics.from_xml_string(*_longer_floor(cheetah, "ground", 200))
        return control.Environment(physics, make_task(seed), time_limit=10)

    return build


# Hopper


class BackwardsHopper(hopper.Hopper):
    """Hop backwards at 1 m/s or faster."""

    def __init__(self, random: int | None) -> None:
        super().__init__(hopping=True, random=random)

    def get_reward(self, physics: Any) -> float:
        standing = tolerance(physics.height(), bounds=(0.6, 2))
        hopping = tolerance(physics.speed(), bounds=(-_INF, -1), margin=0.5, value_at_margin=0.5, sigmoid="linear")
        return standing * hopping


def _hop_backwards(seed: int | None) -> control.Environment:
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return control.Environment(physics, BackwardsHopper(seed), time_limit=20, control_timestep=0.02)


# Cup


class CupSpin(ball_in_cup.BallInCup):
    """Swing the ball around the cup, far from the target and fast."""

    def initialize_episode(self, physics: Any) -> None:
        """Starts with the ball in the cup, or in one episode of ten anywhere free of contact."""
        anywhere = self.random.uniform() < 0.1
        placed = False
        while not placed:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            placed = physics.data.ncon == 0 and (anywhere or physics.in_target() > 0)
        # The parent's own method would draw a start of its own, so the one above it is called.
        super(ball_in_cup.BallInCup, self).initialize_episode(physics)

    def get_reward(self, physics: Any) -> float:
        far = tolerance(
            np.linalg.norm(physics.ball_to_target()),
            bounds=(0.5, _INF),
            margin=0.25,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        fast = tolerance(
            np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]),
            bounds=(6, _INF),
            margin=3,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return (1 - physics.in_target()) * (far + 2 * fast) / 3


def _cup_spin(seed: int | None) -> control.Environment:
    physics = ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets())
    return control.Environment(physics, CupSpin(random=seed), time_limit=20, control_timestep=0.02)


# Pendulum


class PendulumSpin(pendulum.SwingUp):
    """Turn the pole at 9 rad/s or faster, either way round."""

    def get_reward(self, physics: Any) -> float:
        return tolerance(
            np.linalg.norm(physics.angular_velocity()),
            bounds=(9, _INF),
            margin=4.5,
            value_at_margin=0.5,
            sigmoid="linear",
        )


def _pendulum_spin(seed: int | None) -> control.Environment:
    physics = pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets())
    return control.Environment(physics, PendulumSpin(random=seed), time_limit=20)


# Reacher with three links


def _three_link_model() -> tuple[bytes, dict[str, bytes]]:
    """dm_control's reacher with three links: arm0, arm1, hand, finger, each 0.09 m from the last."""
    xml, assets = reacher.get_model_and_assets()
    root = etree.fromstring(xml)
    arm0 = root.find(".//body[@name='arm']")
    arm0.set("name", "arm0")
    upper_geom, upper_joint = arm0.find("geom"), arm0.find("joint")
    upper_geom.set("name", "arm0")
    upper_geom.set("fromto", "0 0 0 0.09 0 0")
    upper_joint.set("name", "shoulder0")

    hand = arm0.find("body[@name='hand']")
    arm1 = etree.SubElement(arm0, "body", name="arm1", pos="0.09 0 0")
    etree.SubElement(arm1, "geom", {**upper_geom.attrib, "name": "arm1"})
    etree.SubElement(arm1, "joint", name="shoulder1", limited="true", range="-80 80")
    arm1.append(hand)

    hand.set("pos", "0.09 0 0")
    hand.find("joint[@name='wrist']").set("range", "-80 80")
    hand.find("body[@name='finger']").set("pos", "0.09 0 0")

    shoulder_motor = root.find("./actuator/motor[@name='shoulder']")
    shoulder_motor.set("name", "shoulder0")
    shoulder_motor.set("joint", "shoulder0")
    shoulder_motor.addnext(etree.Element("motor", {**shoulder_motor.attrib, "name": "shoulder1", "joint": "shoulder1"}))
    return etree.tostring(root), assets


def _reacher_three(target_size: float) -> Callable[[int | None], control.Environment]:
    def build(seed: int | None) -> control.Environment:
        physics = reacher.Physics.from_xml_string(*_three_link_model())
        return control.Environment(physics, reacher.Reacher(target_size, random=seed), time_limit=20)

    return build


BUILDERS: dict[str, Callable[[int | None], control.Environment]] = {
    "walker-walk-backwards": _walker(speed=1),
    "walker-run-backwards": _walker(speed=8),
    "cheetah-run-backwards": _cheetah(lambda seed: BackwardsCheetah(random=seed)),
    "cheetah-run-front": _cheetah(lambda seed: OneFootedCheetah("bfoot", random=seed)),
    "cheetah-run-back": _cheetah(lambda seed: OneFootedCheetah("ffoot", random=seed)),
    "cheetah-jump": _cheetah(lambda seed: JumpingCheetah(random=seed)),
    "hopper-hop-backwards": _hop_backwards,
    "reacher-three-easy": _reacher_three(target_size=0.05),
    "reacher-three-hard": _reacher_three(target_size=0.015),
    "cup-spin": _cup_spin,
    "pendulum-spin": _pendulum_spin,
}
