"""JSON that somebody else may have written: whatever is wrong with it is a ValueError."""

import json
import math
from typing import Any


def parse(text: str | bytes) -> Any:
    """Returns the value. Raises ValueError where it is no JSON, is no UTF-8, or nests brackets beyond all reason."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets nest too deeply") from error


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a double can hold: no bool, not 10**400, not NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
