"""The few inner loops that must be fast."""
