"""``python -m xds`` is ``gossamer``."""

from xds.cli import main

main()
