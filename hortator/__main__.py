"""`python -m hortator` is the command line."""

from hortator.cli import main

main()
