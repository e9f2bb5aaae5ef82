"""What every part of the package stands on: files, progress, randomness, processes, errors."""
