"""Rectangles in pixels, half open: rows y0 … y1 - 1, columns x0 … x1 - 1."""

from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of pixels."""

    y0: int
    x0: int
    y1: int
    x1: int

    def overlaps(self, other: 'Box') -> bool:
        """Whether the two share a pixel."""
        return self.y0 < other.y1 and other.y0 < self.y1 and self.x0 < other.x1 and other.x0 < self.x1

    def crop(self, image):
        """The pixels of `image` (height, width, …) in this box."""
        return image[self.y0 : self.y1, self.x0 : self.x1]
