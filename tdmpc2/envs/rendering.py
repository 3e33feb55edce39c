"""Frames without a display: which OpenGL back end works here, and drawing with it through MuJoCo.

MuJoCo and dm_control pick their back end when they are first imported, once and for all. Here it is picked
when the first frame is wanted, whatever was imported before, so that a program that draws nothing needs no
OpenGL.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.errors import RenderError, UserError

BACKENDS = ("egl", "osmesa")
_USER_BACKENDS = (*BACKENDS, "glfw")
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
    environment = {**os.environ, "MUJOCO_GL": "disabled"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, backend],
            env=environment,
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


class FrameRenderer:
    """Draws one environment's scene from one camera. Use it from the thread that made it."""

    def __init__(self, physics: Any, *, camera: int | str, width: int, height: int) -> None:
        self._gl_context: Any = None
        self._context: Any = None
        if width < 1 or height < 1:
            raise UserError(f"a frame must be at least 1 x 1 pixels, not {width} x {height}.")
        backend = choose_backend()
        import mujoco

        model = physics.model.ptr
        self._data = physics.data.ptr
        self._model = model
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = _camera_id(model, camera)
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        try:
            self._gl_context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            self._gl_context.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        # Whatever a driver or PyOpenGL raises (AttributeError and OSError among them) means the same to the
        # user.
        except Exception as error:
            self.close()
            raise RenderError(f"OpenGL back end '{backend}' failed: {error!r}. {_ADVICE}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.zeros((height, width, 3), np.uint8)
        self._mujoco = mujoco
        # A context must be freed before the interpreter's end takes the OpenGL library away.
        atexit.register(_close_if_alive, weakref.ref(self))

    def frame(self) -> NDArray[np.uint8]:
        """The scene as it is now, uint8 [height, width, 3], top row first."""
        if self._context is None:
            raise RenderError("the environment is closed; make a new one to draw frames.")
        mj = self._mujoco
        self._gl_context.make_current()
        mj.mjv_updateScene(
            self._model, self._data, self._options, None, self._camera, mj.mjtCatBit.mjCAT_ALL, self._scene
        )
        mj.mjr_render(self._rectangle, self._scene, self._context)
        mj.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Frees the OpenGL context; a second call does nothing."""
        if self._context is not None:
            self._gl_context.make_current()
            self._context.free()
            self._context = None
        if self._gl_context is not None:
            self._gl_context.free()
            self._gl_context = None

    def __del__(self) -> None:
        self.close()


def _camera_id(model: Any, camera: int | str) -> int:
    names = [model.camera(index).name for index in range(model.ncam)]
    if isinstance(camera, str) and camera in names:
        return names.index(camera)
    if isinstance(camera, int) and 0 <= camera < len(names):
        return camera
    raise UserError(f"camera {camera!r} is not in the model, which has {dict(enumerate(names))}.")


def _close_if_alive(renderer: weakref.ref[FrameRenderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.close()
