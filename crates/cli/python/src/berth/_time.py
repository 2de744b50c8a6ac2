"""Times of arguments: a timedelta, seconds, or text such as "30m"."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Union

from .errors import ConfigurationError

#: A time: a timedelta, seconds, or text such as "30m" and "1h 30m".
Time = Union[timedelta, float, str]

_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_MAX_DAYS = 3650
_MAX_TEXT = 100


def parse_time(name: str, value: Time) -> timedelta:
    """A time from an argument."""
    next_step = f'give {name}="30m", seconds, or a timedelta'
    try:
        time = _time_of(value)
    except ValueError:
        raise ConfigurationError(
            f"{name} is {str(value)[:_MAX_TEXT]!r}, which is not a time.", next_step=next_step
        ) from None
    except OverflowError:
        time = timedelta.max
    if time <= timedelta(0):
        raise ConfigurationError(f"{name} is not positive.", next_step=next_step)
    if time > timedelta(days=_MAX_DAYS):
        raise ConfigurationError(f"{name} is longer than {_MAX_DAYS} days.", next_step=next_step)
    return time


def _time_of(value: Time) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return timedelta(seconds=value)
    parts = _PART.findall(value) if isinstance(value, str) else []
    if not parts or _PART.sub("", str(value)).strip():
        raise ValueError(value)
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
