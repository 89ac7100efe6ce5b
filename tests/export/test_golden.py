"""The images that the project draws."""

import io

from PIL import Image

from seresnext.export.golden import draw_golden


def test_drawn_images_have_the_kinds_that_differ():
    images = draw_golden()
    opened = [Image.open(io.BytesIO(data)) for data in images]
    assert images == draw_golden()
    assert [image.format for image in opened] == ["JPEG"] * 5 + ["PNG"] * 3
    assert {image.mode for image in opened} == {"RGB", "L", "CMYK", "P", "RGBA"}
    assert [image.getexif().get(0x0112) for image in opened].count(6) == 1
    assert any("progressive" in image.info for image in opened)
    assert sum(side % 2 for image in opened for side in image.size) > 8
