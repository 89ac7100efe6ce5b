"""The check of a run before the start: data, recipe, devices, network, disk, time and price."""
