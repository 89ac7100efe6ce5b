"""Checkpoints: `store` keeps the files of a run safe on disk, `contents` knows what is inside one."""
