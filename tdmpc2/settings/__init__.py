"""Configuration: Hydra schemas derived from the packages' settings, conversion back, and the list of all keys."""
