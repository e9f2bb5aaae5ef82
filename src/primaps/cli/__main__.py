"""``python -m primaps.cli``."""

from primaps.cli import main

main()
