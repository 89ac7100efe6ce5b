"""The data doctor: files, copies, classes and labels of a set of images, before a training."""
