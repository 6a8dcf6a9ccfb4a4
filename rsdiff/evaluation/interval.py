"""A value with its confidence interval."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers; infinite and undefined ones are None."""
        return {
            key: float(number) if number is not None and np.isfinite(number) else None
            for key, number in (('value', self.value), ('low', self.low), ('high', self.high))
        }
