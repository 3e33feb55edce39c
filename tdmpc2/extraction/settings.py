"""What a policy prior is trained to do in a frozen world model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError
from tdmpc2.keys import THIS_PROJECT, check_keys, key
from tdmpc2.ranges import MOST_EPISODES, MOST_SCALE, OneOf, Share, Whole, Within

PLANNED = "labels/planner"
"""The folder, in a store's, of what a planner would do, unless a key names another."""

_FIRST_KEYS = frozenset(("e_imagine", "imagine_horizon", "imagine_q", "imagine_spread", "lr_end"))
"""Those that every state of a run names; a state that does not name another key has its default."""

PWM = "PWM (arXiv 2407.02466)"


@dataclass(frozen=True)
class ExtractionSettings:
    """Keys of `mode=extract`; the coefficients weigh what the policy's loss is made of.

    `imitate_labels` is the folder of the planner's actions; None where nothing is imitated.
    """

    imitate_labels: Path | None = None

    e_imagine: float = key(
        1.0,
        "of mode=extract: weight of the imagined return, over its running scale (pi_scale), and of the entropy",
        unit="factor",
        source=f"{PWM}; {THIS_PROJECT}",
        check=Within(0, MOST_SCALE),
    )
    imagine_horizon: int = key(
        3,
        "of mode=extract: steps that the policy imagines before the terminal Q",
        unit="decisions",
        source=f"{THIS_PROJECT}; 16 in {PWM}",
        check=Whole(1, 64),
    )
    imagine_restarts: int = key(
        0,
        "of mode=extract: times that the policy starts again, within an update, from the states that it reached in "
        "imagination; each costs as much as the first time",
        unit="times",
        source=THIS_PROJECT,
        check=Whole(0, 64),
    )
    imagine_q: str = key(
        "mean",
        "of mode=extract: what the terminal Q is of all heads, their mean or the least",
        unit="mean or min",
        source=THIS_PROJECT,
        check=OneOf(("mean", "min")),
    )
    imagine_spread: float = key(
        0.0,
        "of mode=extract: standard deviations over the heads that the terminal Q is lowered by",
        unit="factor",
        source=THIS_PROJECT,
        check=Within(0, MOST_SCALE),
    )
    imagine_critic: bool = key(
        False,
        "of mode=extract: whether the terminal Q is a critic's, which starts as the model's Q and is trained on what "
        "is imagined; it is in the run's state, not in the student",
        unit="true or false",
        source=f"{THIS_PROJECT}; true in {PWM}",
    )
    critic_lambda: float = key(
        0.95,
        "of mode=extract with imagine_critic: lambda of its returns, 0 for one step and 1 for all of them",
        unit="ratio",
        source=PWM,
        check=Within(0, 1),
    )
    e_imitate: float = key(
        0.0,
        "of mode=extract: weight of the squared error towards what the model's own planner would do (imitate_labels), "
        "in the states that were planned from",
        unit="factor",
        source=THIS_PROJECT,
        check=Within(0, MOST_SCALE),
    )
    imitate_where: str = key(
        "all",
        "of mode=extract: where e_imitate counts: in all states that were planned from, or only where Q finds the "
        "planner's action better than the prior's mean",
        unit="all or better",
        source=THIS_PROJECT,
        check=OneOf(("all", "better")),
    )
    rounds: int = key(
        1,
        "of mode=extract: rounds of as many updates each; between two of them the policy acts in the simulator, and "
        "the states that it meets are half of the starts from then on",
        unit="rounds",
        source=THIS_PROJECT,
        check=Whole(1, 10_000),
    )
    collect_episodes: int = key(
        2,
        "of mode=extract with rounds: episodes of each task that the policy plays between two rounds",
        unit="episodes",
        source=THIS_PROJECT,
        check=Whole(1, MOST_EPISODES),
    )
    weight_average: float = key(
        0.0,
        "of mode=extract: decay of an exponential average of the policy head's weights, which is what is evaluated and "
        "saved; 0: the last weights",
        unit="ratio",
        source=THIS_PROJECT,
        check=Share(zero=True),
    )
    lr_end: float = key(
        0.0,
        "of mode=extract: learning rate of the last update, as a part of lr, which falls to it along a line",
        unit="ratio",
        source=PWM,
        check=Share(zero=True),
    )

    def __post_init__(self) -> None:
        check_keys(self)

    def check_objectives(self, others: int) -> None:
        """Raises a `UserError` where nothing is left to learn from; `others` objectives come from a teacher."""
        if not self.e_imagine and not self.e_imitate and not others:
            raise UserError(
                "mode=extract has nothing to learn from: set e_imagine or e_imitate above 0, or d_policy with a "
                "teacher."
            )
        if self.imagine_critic and not self.e_imagine:
            raise UserError("imagine_critic=true serves the imagined return: set e_imagine above 0, or leave it out.")

    def identity(self) -> dict[str, Any]:
        """What may not change when a run resumes; what the labels hold is compared apart."""
        held = {field: getattr(self, field.name) for field in fields(self) if field.name != "imitate_labels"}
        return {
            field.name: value for field, value in held.items() if field.name in _FIRST_KEYS or value != field.default
        }
