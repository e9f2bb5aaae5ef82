"""Facilities that every other package uses: files, validation, progress, seeding, errors."""
