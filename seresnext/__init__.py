"""Training, validation and use of Squeeze-and-Excitation ResNeXt."""

__version__ = "0.1.0"
