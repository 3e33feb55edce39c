"""Configuration: typed Hydra schemas, and their conversion into the rooms' frozen settings."""
