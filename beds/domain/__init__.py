"""The values that all parts share, such as events, replies and tickets. No I/O, no settings."""
