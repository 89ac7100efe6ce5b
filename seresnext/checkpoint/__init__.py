"""Checkpoints: `store` manages the files, `contents` the tensors and metadata, `file_format` writes one file."""
