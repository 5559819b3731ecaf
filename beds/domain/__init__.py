"""Frozen values that travel between the parts. No I/O, no settings."""
