"""Regions of label maps as run lengths, outlines and polygons on a map.

- :mod:`~primaps.geometry.regions`: a region per class, or per connected component.
- :mod:`~primaps.geometry.rle`: run-length encodings (COCO and row by row).
- :mod:`~primaps.geometry.outlines`: polygons to pixels and back, without the extra ``geo``.
- :mod:`~primaps.geometry.vectors`: georeference, shapely polygons, GeoPackage and GeoJSON files,
  with the extra ``geo``.
"""
