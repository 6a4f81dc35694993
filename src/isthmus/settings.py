"""Settings in TOML files, read strictly: an unknown key is an error that names the nearest valid one.

# given: class Limits(Section): ...
limits = read_settings(Path("limits.toml"), Limits)      # ConfigError: file, key, rule, value, way out
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from isthmus.errors import ConfigError


class Section(BaseModel):
    """Base of every table of a configuration file: frozen, no unknown keys, no coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def is_none(value: object) -> bool:
    """For `exclude_if`: a key that is absent is in no dump, so that files without it keep their digest."""
    return value is None


_Model = TypeVar("_Model", bound=Section)


def read_settings(file: Path, model: type[_Model]) -> _Model:
    """Read a file of settings; its folder goes into the field `folder`, where the model has one.

    Raises:
        ConfigError: If the file is absent or any key or value in it is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file. `isthmus demo DIR` writes a federation to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    if "folder" in raw:
        raise ConfigError(f"{file}: unknown key `folder`")
    try:
        place = {"folder": file.resolve().parent} if "folder" in model.model_fields else {}
        loaded = model.model_validate({**raw, **place})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(file, model, problem) for problem in error.errors())) from None
    return loaded


def toml_value(value: object) -> str:
    """A string, number, boolean or list as TOML: JSON writes them the same way."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_text(section: Section) -> str:
    """Settings as the text of a file that `read_settings` reads to the same settings; absent values are left out."""
    return "\n".join(_toml_lines(section.model_dump(mode="json", exclude_none=True), "")) + "\n"


def _toml_lines(values: Mapping[str, Any], table: str) -> list[str]:
    """Values of one table, then the tables in it."""
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, inner in values.items():
        if isinstance(inner, dict):
            lines += ["", f"[{table}{key}]", *_toml_lines(inner, f"{table}{key}.")]
    return lines


def _explain(file: Path, model: type[Section], problem: Any) -> str:
    """One line for one thing that is wrong: file, key, rule, value, way out."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = _keys_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.0)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"{file}: unknown key `{key}`{hint} Valid keys: {', '.join(valid)}."
    if problem["type"] == "missing":
        return f"{file}: key `{key}` is missing"
    message = problem["msg"].removeprefix("Value error, ")
    seen = problem["input"]
    shown = "" if isinstance(seen, dict) else f", got {seen!r}"
    where = f"`{key}`: " if key else ""
    return f"{file}: {where}{message}{shown}"


def _keys_at(model: type[Section], path: list[str]) -> list[str]:
    """Valid keys of the table at `path`, e.g. ["privacy"]."""
    for part in path:
        annotation = model.model_fields[part].annotation
        options = (annotation, *get_args(annotation))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return sorted(name for name in model.model_fields if name != "folder")
