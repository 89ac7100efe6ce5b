"""Training: schedule, optimizer, loss, the step, and the loop around it."""
