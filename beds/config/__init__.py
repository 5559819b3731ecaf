"""The configuration of a node, from beds.toml and the environment."""

from beds.config.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
