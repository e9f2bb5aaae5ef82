"""Label maps out to the tools that people use, and back again.

A format is a writer and a reader: a writer takes images with their label maps, one at a time, and
the classes; a reader gives the same back. :data:`FORMATS` lists them.
"""

from primaps.exchange.classes import NOTHING, Classes, read_classes
from primaps.exchange.exporting import Exported, export_labels
from primaps.exchange.formats import FORMATS, Format
from primaps.exchange.importing import Imported, import_labels
from primaps.exchange.labeled import LabeledImage

__all__ = [
    "FORMATS",
    "NOTHING",
    "Classes",
    "Exported",
    "Format",
    "Imported",
    "LabeledImage",
    "export_labels",
    "import_labels",
    "read_classes",
]
