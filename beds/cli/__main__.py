"""`python -m beds.cli`."""

from beds.cli.main import main

main()
