"""What a run measures and where it says so: sums on the device, accuracy, speed, log files, the terminal."""
