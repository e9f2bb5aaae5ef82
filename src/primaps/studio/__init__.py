"""The studio: a page in the browser, from a folder of images to a labeled data set.

The page consists of ES modules in ``static``. ``docs/studio.md`` lists the requests that it sends.
"""
