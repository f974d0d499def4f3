"""``python -m bezoar``."""

from bezoar.cli import main

main()
