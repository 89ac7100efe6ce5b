"""Training: the loop (`trainer`), one optimizer step (`step`), and the objects of both."""
