"""Train a model by a recipe: the same as `seresnext train`. See `python train.py --help` and README.md."""

from seresnext.__main__ import main

if __name__ == "__main__":
    main("train")
