"""What a node knows about itself, from beds.toml."""

from beds.config.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
