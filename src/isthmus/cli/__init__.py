"""The command line: verbs on nouns that people have. A verb parses, calls one function and prints."""

from isthmus.cli.main import main

__all__ = ["main"]
