"""How processes start, receive signals and end."""
