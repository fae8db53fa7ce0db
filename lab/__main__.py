"""``python -m lab`` is the ``lab`` command."""

from lab.cli.app import main

main()
