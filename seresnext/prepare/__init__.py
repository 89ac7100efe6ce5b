"""Preparation of image folders and shards."""
