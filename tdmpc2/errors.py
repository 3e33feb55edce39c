"""The one family of errors that a user can cause, so that entry scripts print them without a traceback."""


class UserError(Exception):
    """Bad input or environment: the message names the file or key, what was found and what to do next."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign, or made for another size or task set."""


class DataError(UserError):
    """A dataset file or store that is missing, damaged, or holds values it must not hold."""


class RenderError(UserError):
    """No headless OpenGL back end could draw a frame."""
