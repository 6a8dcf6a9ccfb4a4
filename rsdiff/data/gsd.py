"""The range of ground sampling distances that any image of the Earth can have."""

from typing import Any

from rsdiff.base.errors import BadInput

# metres per pixel: from a millimetre under a microscope to a planet in four pixels
SMALLEST_GSD_M, LARGEST_GSD_M = 1e-3, 1e7


def check_gsd_m(value: Any, where: str) -> float:
    """`value` as metres per pixel.

    Raises:
      BadInput: it is not a number from `SMALLEST_GSD_M` to `LARGEST_GSD_M`. The message begins with `where`.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not SMALLEST_GSD_M <= value <= LARGEST_GSD_M:
        raise BadInput(
            f'{where} is {str(value)[:40]}; it must be metres per pixel from {SMALLEST_GSD_M:g} to {LARGEST_GSD_M:.0e}'
        )
    return float(value)
