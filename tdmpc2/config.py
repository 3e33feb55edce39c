"""In a clone, `tdmpc2.config` is the folder `config/` at its root; a wheel has that folder in this file's place.

So `hydra.initialize_config_module("tdmpc2.config", version_base="1.3")` works in both.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location

from tdmpc2.places import CONFIG_DIR

_spec = spec_from_file_location(__name__, CONFIG_DIR / "__init__.py")
assert _spec is not None and _spec.loader is not None
_module = sys.modules[__name__] = module_from_spec(_spec)  # what the import that runs this file returns
_spec.loader.exec_module(_module)
