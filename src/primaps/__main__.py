"""``python -m primaps``."""

from primaps.cli import main

main()
