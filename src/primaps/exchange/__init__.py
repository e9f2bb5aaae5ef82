"""Label maps in the formats of other tools: export and import.

A format has a writer, and mostly a reader. A writer takes images with label maps, one at a time,
and their classes; a reader returns them. :mod:`primaps.exchange.formats` lists the formats.
"""
