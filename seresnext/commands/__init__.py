"""The commands: arguments and work of each. Heavy imports come late, so that `--help` is quick."""
