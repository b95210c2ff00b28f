"""``python -m openjepa`` is the command line, for torchrun."""

from openjepa.cli import main

main()
