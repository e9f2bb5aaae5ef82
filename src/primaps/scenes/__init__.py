"""Images of any size: read by windows, blended on the feature grid, written as they are placed."""
