"""Range checks of numeric settings. A value out of range is a mistake, or would exhaust the memory."""

from typing import Any

from rsdiff.base.errors import BadInput

# upper limit of counts of images or steps: up to here, floats represent integers exactly
MOST = 2**53


def check_range(config: Any, least: float, most: float, *names: str) -> None:
    """Checks fields of a config: a number, a tuple of numbers, or None, which always passes.

    Raises:
      BadInput: a number is below `least`, above `most`, or NaN. The message begins with the field's name.
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not least <= number <= most:
                raise BadInput(f'{name} is {str(value)[:60]}; it must be from {least:g} to {most:g}')
