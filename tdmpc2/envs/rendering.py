"""Frames without a display: which OpenGL back end works here, and drawing with it through MuJoCo.

MuJoCo and dm_control pick their back end when they are first imported, once and for all. Here it is picked
when the first frame is wanted, whatever was imported before, so that a program that draws nothing needs no
OpenGL.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.errors import RenderError, UserError
from tdmpc2.ranges import check_whole

BACKENDS = ("egl", "osmesa")
_USER_BACKENDS = (*BACKENDS, "glfw")
_MOST_PIXELS = 2**14
_ADVICE = (
    "Install a headless OpenGL: `apt-get install libegl1 libgl1-mesa-dri` (EGL) or "
    "`apt-get install libosmesa6` (OSMesa), or set MUJOCO_GL to a back end that works here."
)

# A whole frame buffer, not only a context: a driver without one fails no sooner than there. MUJOCO_GL is
# disabled in the probe because otherwise importing mujoco would already load a back end.
_PROBE = """
import sys, importlib, mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


@functools.cache
def choose_backend() -> str:
    """The OpenGL back end that frames are drawn with: the user's MUJOCO_GL, else EGL, else OSMesa.

    The automatic choice is tried out in a child process, because a failed attempt cannot be undone in a
    process (PyOpenGL binds to one platform) and may crash it. Raises `RenderError` if none works.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen:
        if chosen not in _USER_BACKENDS:
            raise RenderError(
                f"MUJOCO_GL is '{chosen}', with which no frame can be drawn. Unset it for an automatic "
                f"choice, or set it to one of {', '.join(_USER_BACKENDS)}."
            )
        return chosen
    failures = []
    for backend in BACKENDS:
        failure = _try_out(backend)
        if failure is None:
            return backend
        failures.append(f"{backend}: {failure}")
    raise RenderError(f"no frame can be drawn on this machine ({'; '.join(failures)}). {_ADVICE}")


def _try_out(backend: str) -> str | None:
    """Why a back end does not work here, or None if it does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, backend],
            env={**os.environ, "MUJOCO_GL": "disabled"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with code {done.returncode}"


def load_renderer() -> None:
    """Gives dm_control the chosen back end, unless the program loaded dm_control with one of its own.

    `dmcontrol` imports dm_control without a back end. dm_control's one place of choice is run again here, so
    that an environment made earlier, without frames, does not keep later ones from drawing.
    """
    from dm_control import _render

    if _render.BACKEND in (None, "off"):
        # Drawing stays in the calling thread with every back end: OSMesa's would get a thread of its own,
        # which is gone before the contexts that are freed at the interpreter's end.
        with environment(MUJOCO_GL=choose_backend(), DISABLE_RENDER_THREAD_OFFLOADING="1"):
            importlib.reload(_render)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables while something is imported that reads them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class FrameRenderer:
    """Draws one environment's scene from one camera, up to 16,384 pixels wide and high. Use it from one thread.

    The OpenGL context and its buffers are made for the first frame: many environments may draw, few do. What is
    wrong with the camera, the size or the back end shows when it is made.
    """

    def __init__(self, physics: Any, *, camera: int | str, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise UserError(f"a frame must be at least 1 x 1 pixels, not {width} x {height}.")
        check_whole("width", width, 1, _MOST_PIXELS)
        check_whole("height", height, 1, _MOST_PIXELS)
        self._physics = physics
        self._number = _camera_number(physics.model, camera)
        self._width, self._height = width, height
        self._camera: Any = None
        sizes = physics.model.vis.global_
        sizes.offwidth, sizes.offheight = max(width, sizes.offwidth), max(height, sizes.offheight)
        with _startup_errors():
            load_renderer()

    def frame(self) -> NDArray[np.uint8]:
        """The scene as it is now, uint8 [height, width, 3], top row first."""
        if self._camera is None:
            with _startup_errors():
                from dm_control import mujoco

                self._camera = mujoco.Camera(
                    self._physics, height=self._height, width=self._width, camera_id=self._number
                )
        frame: NDArray[np.uint8] = self._camera.render()
        return frame.copy()


@contextlib.contextmanager
def _startup_errors() -> Iterator[None]:
    try:
        yield
    except RenderError:
        raise
    # Whatever a driver or PyOpenGL raises (AttributeError and OSError among them) means the same to the user.
    except Exception as error:
        raise RenderError(f"OpenGL could not be started: {error!r}. {_ADVICE}") from error


def _camera_number(model: Any, camera: int | str) -> int:
    names = [model.id2name(number, "camera") for number in range(model.ncam)]
    if isinstance(camera, str) and camera in names:
        return names.index(camera)
    if isinstance(camera, int) and 0 <= camera < len(names):
        return camera
    raise UserError(f"camera {camera!r} is not in the model, whose cameras are {dict(enumerate(names))}.")
