"""The studio: one page in the browser, from a folder of images to a labeled data set.

The page is plain ES modules in ``static``; what it asks the server for is in ``docs/studio.md``.
"""
