"""Where words go: results to stdout, progress and errors to stderr. Light: every command imports it."""

import logging
from pathlib import Path

from rich.console import Console

stdout = Console()
"""Results."""
stderr = Console(stderr=True)
"""Progress and errors."""


def log_to(file: Path) -> None:
    """What a supervisor has to say goes to stderr, and to the end of a file that survives it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("isthmus")
    logger.setLevel(logging.INFO)
    for handler in (logging.StreamHandler(), logging.FileHandler(file)):
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
