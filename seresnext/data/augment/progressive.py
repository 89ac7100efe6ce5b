"""Progressive resizing: the training image size as a function of the step."""

from dataclasses import dataclass

from seresnext.recipe.schema import Recipe

_MULTIPLE = 32  # The network divides the side of an image by 32.


@dataclass(frozen=True)
class ImageSizeSchedule:
    """The side of a training image in pixels: `min_size` before step `start`, `max_size` from step `end` on.

    In between, the size grows linearly, in multiples of 32, as in FFCV's recipes (rn50_configs, `resolution`).
    """

    min_size: int
    max_size: int
    start: int
    end: int

    def size_at(self, step: int) -> int:
        """Return the side of the images of a step (from 0), in pixels."""
        if step >= self.end:
            return self.max_size
        if step < self.start:
            return self.min_size
        on_line = self.min_size + (self.max_size - self.min_size) * (step - self.start) / (self.end - self.start)
        return min(max(_MULTIPLE * round(on_line / _MULTIPLE), self.min_size), self.max_size)


def build_image_size_schedule(recipe: Recipe, steps_per_epoch: int) -> ImageSizeSchedule | None:
    """Return the size schedule of a recipe, or None for a constant size."""
    section = recipe.data.progressive
    if section is None:
        return None
    assert section.min_size is not None
    assert section.end_ramp is not None
    start, end = (duration.steps(steps_per_epoch) for duration in (section.start_ramp, section.end_ramp))
    return ImageSizeSchedule(section.min_size, section.max_size or recipe.data.image_size, start, end)
