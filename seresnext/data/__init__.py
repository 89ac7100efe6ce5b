"""Data: from files to batches on the device. docs/code.md has the map."""
