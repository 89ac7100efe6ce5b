"""Datasets in tar shards: on a disk, or on a server."""
