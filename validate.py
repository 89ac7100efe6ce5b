"""Measure a checkpoint on a validation split: the same as `seresnext validate`. See `python validate.py --help`."""

from seresnext.__main__ import main

if __name__ == "__main__":
    main("validate")
