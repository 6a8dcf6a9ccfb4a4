"""The range that a number of the settings has. What lies beyond it is a mistake, or would take all memory there is."""

from typing import Any

from rsdiff.base.errors import BadInput

# of what is counted in images or steps; floats count exactly as far
MOST = 2**53


def check_range(config: Any, least: float, most: float, *names: str) -> None:
    """Checks fields of a config: a number, a tuple of numbers, or None, which is in every range.

    Raises:
      BadInput: one is below `least`, above `most`, or NaN. The line begins with the field's name.
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not least <= number <= most:
                raise BadInput(f'{name} is {str(value)[:60]}; it must be from {least:g} to {most:g}')
