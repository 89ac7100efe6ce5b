"""From image files to batches on the device: readers, order, decode, augment, loader, prefetch, mix."""
