"""A Flower app behind a robust rule: digits, some clients malicious."""
