"""Which custom backbones are installed here, by their entry points; none of their code is run.

installed_backbone("gru4rec").value      # "isthmus_gru4rec:GRU4Rec"
"""

from importlib.metadata import EntryPoint, entry_points

from isthmus.errors import ConfigError

GROUP = "isthmus.backbones"
"""Of the entry points."""


def installed_backbone(name: str) -> EntryPoint:
    """The entry point of a custom backbone.

    Raises:
        ConfigError: If it is absent or there twice.
    """
    found = set(entry_points(group=GROUP, name=name))
    if len(found) == 1:
        return found.pop()
    if found:
        places = ", ".join(sorted(one.value for one in found))
        raise ConfigError(
            f"custom backbone {name!r} is installed by more than one package ({places}); keep one of them"
        )
    there = ", ".join(sorted({one.name for one in entry_points(group=GROUP)})) or "none"
    raise ConfigError(
        f"custom backbone {name!r} is not installed here. It is an entry point of group {GROUP!r}, and there are: "
        f"{there}. Install the package that has it, the same one everywhere: docs/backbone.md."
    )
