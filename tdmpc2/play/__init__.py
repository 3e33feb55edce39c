"""An agent to look at: one simulator that runs in real time (`Stage`), and the page that shows it (`PageServer`)."""

from tdmpc2.play.server import PageServer
from tdmpc2.play.stage import Picture, Planning, Stage

__all__ = ["PageServer", "Picture", "Planning", "Stage"]
