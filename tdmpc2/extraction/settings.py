"""What a policy prior is trained to do in a frozen world model."""

from __future__ import annotations

from dataclasses import dataclass

from tdmpc2.errors import UserError
from tdmpc2.keys import THIS_PROJECT, check_keys, key
from tdmpc2.ranges import MOST_SCALE, OneOf, Share, Whole, Within

PWM = "PWM (arXiv 2407.02466)"


@dataclass(frozen=True)
class ExtractionSettings:
    """Keys of `mode=extract`; the coefficients weigh what the policy's loss is made of."""

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
        if not self.e_imagine and not others:
            raise UserError(
                "mode=extract has nothing to learn from: set e_imagine above 0, or d_policy with a teacher."
            )
