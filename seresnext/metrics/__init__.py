"""The output of a run: events in files, text on the console, speed and status."""
