"""The command line: `beds …`."""
