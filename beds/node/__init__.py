"""A node: the workers that its beds.toml asks for, under one supervisor."""
