"""What a run measures and where it says so: accuracy, speed, log files, the terminal."""
