"""The API reference from the docstrings: ``python docs/reference.py FOLDER`` (needs pdoc)."""

from __future__ import annotations

import sys
from pathlib import Path
from pkgutil import iter_modules

import pdoc

import primaps

if __name__ == "__main__":
    for name in primaps.__all__:  # imported when they are first used, which pdoc does not do
        setattr(primaps, name, getattr(primaps, name))
    pdoc.render.configure(docformat="google", math=False, search=True)
    modules = [module.name for module in iter_modules(primaps.__path__, "primaps.")]  # and below
    shown = [name for name in modules if name not in ("primaps.cli", "primaps.__main__")]
    pdoc.pdoc("primaps", *shown, output_directory=Path(sys.argv[1]))
