"""Where words go: results to stdout, progress and errors to stderr. Light: every command imports it."""

from rich.console import Console

stdout = Console()
"""Results."""
stderr = Console(stderr=True)
"""Progress and errors."""
