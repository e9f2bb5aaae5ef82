"""The studio: a web page that turns a folder of images into a labeled data set.

The page consists of ES modules in ``static``. ``docs/studio.md`` lists the requests that it sends.
"""
