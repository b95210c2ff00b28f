"""What every configuration asks of its own fields, besides what only it knows."""

import typing
from typing import Any, Literal

from openjepa.errors import InputError


def check_settings(config: Any) -> None:
    """Refuse fields of a dataclass that hold none of the choices of their annotation, or a tuple of another length.

    Nothing else looks at annotations when a configuration is made in Python, and an unknown word would be taken for
    whatever the code does last.

    Raises:
        InputError: names the field, its value and what it may be.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value, origin, parts = getattr(config, name), typing.get_origin(hint), typing.get_args(hint)
        if origin is Literal and value not in parts:
            choices = ", ".join(map(repr, parts))
            raise InputError(f"{type(config).__name__}.{name} is {value!r}, not one of {choices}")
        if (
            origin is tuple
            and Ellipsis not in parts
            and (not isinstance(value, tuple | list) or len(value) != len(parts))
        ):
            raise InputError(f"{type(config).__name__}.{name} is {value!r}, and {len(parts)} numbers are needed")
