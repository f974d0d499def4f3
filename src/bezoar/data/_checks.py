"""Strict checks of options: each refuses what it can not use and names the key."""

from __future__ import annotations

from bezoar.errors import ConfigError


def whole(key: str, value: object, least: int = 1) -> int:
    """``value`` if it is an integer of at least ``least``; True and 3.0 are not integers here."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key} must be a whole number, got {value!r}")
    if value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")
    return value


def number(key: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """``value`` if it is a finite number in [low, high], or (low, high] with ``open_low``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} must be a number, got {value!r}")
    inside = low < value <= high if open_low else low <= value <= high
    if not inside or value == float("inf"):
        top = f"at most {high:g}" if high != float("inf") else "finite"
        raise ConfigError(f"{key} must be {'above' if open_low else 'at least'} {low:g} and {top}, got {value!r}")
    return float(value)
