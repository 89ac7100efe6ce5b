"""Augmentations of training images: crop, flip, colours, erased boxes, mixed images."""
