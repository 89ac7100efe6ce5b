"""Exports: a model in the form of another tool, with the proof that the copy gives the same logits."""
