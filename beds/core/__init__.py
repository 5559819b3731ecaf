"""NamasteCore: the one interface to every store."""
