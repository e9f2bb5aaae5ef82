"""Entry point of ``python -m primaps``."""

from primaps.cli import main

main()
