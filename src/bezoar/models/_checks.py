"""Strict checks of a model's options; each names the key."""

from __future__ import annotations

from bezoar.errors import ConfigError


def whole(key: str, value: object) -> int:
    """``value`` if it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} must be a whole number of at least 1, got {value!r}")
    return value


def image_shape(model: str, shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """(C, H, W), if ``shape`` is an image of at least ``least`` x ``least``."""
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ConfigError(f"model {model!r} needs images (C, H, W) of at least {least}x{least}, samples are {shape}")
    return shape[0], shape[1], shape[2]
