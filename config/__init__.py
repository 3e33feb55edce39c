"""The Hydra tree, as a package for `hydra.initialize_config_module("tdmpc2.config", version_base="1.3")`.

Its configurations rest on the schemas in code, which Hydra knows once this package is imported.
"""

from tdmpc2.settings.schema import register_schemas

register_schemas()
