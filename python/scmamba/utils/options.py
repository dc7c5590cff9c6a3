"""Options of the verbs, each declared once: name, type, default, help and range.

A verb has a frozen dataclass of options in ``<package>/options.py``. The signature of the Python function, the help of the
command line, the schema of the server and the defaults of R are made from it or compared with it by a test
(``tests/python/test_options.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from .errors import OptionError

O = TypeVar("O", bound="Options")


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive: bool = False,
    choices: tuple[Any, ...] | None = None,
    unit: str | None = None,
    python_only: bool = False,
) -> Any:
    """Declare one option of an :class:`Options` dataclass.

    Parameters
    ----------
    default
        Value that is used if the option is not given.
    help
        One or two sentences for ``--help``, the server's schema and the R help page; starts with a capital, ends with a full stop.
    minimum, maximum
        Smallest and largest value, inclusive unless ``exclusive``.
    exclusive
        The bounds themselves are not allowed.
    choices
        The values that are allowed.
    unit
        Unit of the value, such as ``"cells"`` or ``"log1p(CP10k)"``.
    python_only
        The option takes an object of Python and exists neither on the command line nor on the server.

    Returns
    -------
    A dataclass field.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "exclusive": exclusive,
            "choices": choices,
            "unit": unit,
            "python_only": python_only,
        },
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Base class of the options of one verb; checks every value when it is made."""

    #: Name of the verb, for messages.
    verb: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Refuse values outside of their range.

        Raises
        ------
        OptionError
            A value is not one of the choices, or outside of its range.
        """
        for field in dataclasses.fields(self):
            check_option(field.name, getattr(self, field.name), field.metadata)

    @classmethod
    def from_mapping(cls: type[O], values: Mapping[str, Any]) -> O:
        """Options from keyword arguments of a user.

        Parameters
        ----------
        values
            Value by name; missing ones take their defaults.

        Raises
        ------
        TypeError
            A name that is no option of this verb.
        OptionError
            A value outside of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise TypeError(
                f"{cls.verb}() has no option {', '.join(unknown)}; its options are {', '.join(sorted(known))}."
            )
        return cls(**values)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default of every option, by name."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @classmethod
    def help(cls, name: str) -> str:
        """Help text of one option, with its unit and range."""
        meta = next(field for field in dataclasses.fields(cls) if field.name == name).metadata
        return str(meta["help"])

    def params(self) -> dict[str, Any]:
        """The values as a dictionary of plain types, for provenance; options that are ``None`` are omitted."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in values.items()
            if isinstance(value, (str, bool, int, float))
        }


def check_option(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    """Refuse a value outside of the range that :func:`option` declared.

    Parameters
    ----------
    name
        Name of the option, for the message.
    value
        What the user gave; ``None`` always passes.
    meta
        Metadata of the field.

    Raises
    ------
    OptionError
        The value is not one of the choices, or outside of its range.
    """
    if value is None:
        return
    choices = meta.get("choices")
    if choices is not None and value not in choices:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    low, high = meta.get("minimum"), meta.get("maximum")
    if (low is None and high is None) or not isinstance(value, (int, float)):
        return
    if meta.get("exclusive"):
        fits = (low is None or value > low) and (high is None or value < high)
        words = {
            (True, True): f"between {low} and {high} (exclusive)",
            (True, False): f"above {low}",
        }
    else:
        fits = (low is None or value >= low) and (high is None or value <= high)
        words = {(True, True): f"from {low} to {high}", (True, False): f"at least {low}"}
    if not fits:
        expected = words.get((low is not None, high is not None), f"at most {high}")
        raise OptionError(f"{name} is {value}; expected a number {expected}.")
