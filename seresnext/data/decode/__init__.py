"""From the bytes of an image file to pixels, with the pixels of Pillow."""
