"""Commands that make image folders and shards, and check downloads."""
