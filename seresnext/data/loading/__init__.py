"""Worker processes that make batches, and the transfer of batches to the device."""
