"""Images of any size: read in blocks, blended on the token grid, and georeferenced."""
