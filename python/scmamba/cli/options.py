"""Options of commands, made from the options of the verbs (:mod:`scmamba.utils.options`): names, defaults, help and ranges."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from ..utils.deprecation import REMOVED_IN
from ..utils.errors import OptionError
from ..utils.options import Options

F = TypeVar("F", bound=Callable[..., Any])

Input = Annotated[Path, typer.Argument(help="An .h5ad file of counts, cells x genes.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Name, checkpoint folder or published .ckpt; default brain-mini."
    ),
]
Layer = Annotated[str | None, typer.Option(help="Layer to read; X if not given.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Force = Annotated[
    bool, typer.Option("--force", help="Continue although few of the model's genes were measured.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress bars.")]


@dataclasses.dataclass(frozen=True)
class Former:
    """A former option of a command, which works for one version and warns.

    Attributes
    ----------
    new
        Name of the option of today, with underscores.
    kind
        Type of the former option; ``bool`` makes a pair ``--x/--no-x``.
    value
        Gives the new value from the former one; the same value if ``None``.
    """

    new: str
    kind: type = str
    value: Callable[[Any], Any] | None = None


def options_of(
    options: type[Options],
    *,
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    flags: Mapping[str, tuple[str, ...]] | None = None,
    former: Mapping[str, Former] | None = None,
    former_values: Mapping[str, Mapping[str, str]] | None = None,
    unset: bool = False,
) -> Callable[[F], F]:
    """Give a command the options of a verb, in place of its ``**`` parameter.

    Parameters
    ----------
    options
        Options of the verb. Those that exist only in Python (``python_only``) and ``verbose`` (``--quiet``) are omitted.
    skip
        Options that this command does not have, or declares itself.
    only
        The options that this command has; all if not given.
    flags
        Flags of an option in place of ``--name-with-hyphens``, such as ``{"model": ("--model", "-m")}``.
    former
        Former options by name, hidden in the help.
    former_values
        Former values of an option and those of today, by the name of the option.
    unset
        Every option is ``None`` if it is not given, so that a file or a recipe decides; for ``pretrain`` and ``finetune``.

    Returns
    -------
    A decorator.
    """
    known = {field.name: field for field in dataclasses.fields(options)}
    hidden = {"verbose", *skip, *(n for n, f in known.items() if f.metadata.get("python_only"))}
    names = [name for name in (known if only is None else only) if name not in hidden]
    hints = typing.get_type_hints(options)
    formers, old_values = former or {}, former_values or {}

    def decorate(command: F) -> F:
        # Not get_type_hints: on Python 3.10 it makes Optional[Annotated[...]] of a default of None.
        own = inspect.signature(command, eval_str=True)
        parameters = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in own.parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        readers: dict[str, Callable[[Any], Any]] = {}
        for name in names:
            extra = tuple(old_values.get(name, ()))
            parameter, read = _parameter(known[name], hints[name], flags or {}, unset, extra)
            parameters.append(parameter)
            readers[name] = read
        parameters += [_former_parameter(name, old) for name, old in formers.items()]

        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            for name, read in readers.items():
                given[name] = read(given[name])
            for name, new_by_old in old_values.items():
                if given[name] in new_by_old:
                    new = new_by_old[given[name]]
                    _warn(f"--{_hyphens(name)} {given[name]}", f"--{_hyphens(name)} {new}")
                    given[name] = new
            for name, old in formers.items():
                value = given.pop(name)
                if value is not None:
                    _warn(f"--{_hyphens(name)}", f"--{_hyphens(old.new)}")
                    given[old.new] = value if old.value is None else old.value(value)
            return command(**given)

        del wrapper.__dict__["__wrapped__"]
        wrapper.__dict__["__signature__"] = own.replace(parameters=parameters)
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return typing.cast(F, wrapper)

    return decorate


def renamed_command(app: typer.Typer, old: str, new: str, command: Callable[..., Any]) -> None:
    """Register ``command`` under its former name, hidden in the help, with a warning.

    Parameters
    ----------
    app
        The application.
    old, new
        Former name and name of today.
    command
        The function.
    """

    @functools.wraps(command)
    def wrapper(**given: Any) -> Any:
        _warn(f"scmamba {old}", f"scmamba {new}")
        return command(**given)

    del wrapper.__dict__["__wrapped__"]
    signature = inspect.signature(command, eval_str=True)
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    wrapper.__dict__["__signature__"] = signature.replace(parameters=parameters)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(old, hidden=True)(wrapper)


def split_list(text: str | None) -> list[str] | None:
    """The parts of a comma-separated text.

    Parameters
    ----------
    text
        What was typed.

    Returns
    -------
    Its parts without spaces around them; ``None`` for ``None``.
    """
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _parameter(
    field: dataclasses.Field[Any],
    hint: Any,
    flags: Mapping[str, tuple[str, ...]],
    unset: bool,
    former_values: tuple[str, ...],
) -> tuple[inspect.Parameter, Callable[[Any], Any]]:
    """The parameter of a command for one option, and what turns the typed value into the option's."""
    meta, name = field.metadata, field.name
    kind, item = _kind(hint)
    flag = flags.get(name, (f"--{_hyphens(name)}",))
    if kind is bool and (field.default is not False or unset):
        flag = (f"{flag[0]}/--no-{_hyphens(name)}", *flag[1:])
    text = str(meta.get("help", ""))
    if meta.get("unit") and kind is not bool:
        text = f"{text.rstrip('.')} ({meta['unit']})."
    limits: dict[str, Any] = {}
    if kind in (int, float) and not meta.get("exclusive"):
        limits = {"min": meta.get("minimum"), "max": meta.get("maximum")}
    choices = meta.get("choices")
    shown: Any = kind
    if choices is not None and all(isinstance(choice, str) for choice in choices):
        shown = Literal[(*choices, *former_values)]
        if former_values:
            limits["metavar"] = f"[{'|'.join(choices)}]"
    default, read = (None if unset else field.default), _same
    if item is not None:
        shown, read = str, functools.partial(_read_list, name, item)
        text += " Comma-separated."
        if isinstance(default, (tuple, list)):
            default = ",".join(map(str, default))
    if default is None:
        shown = _optional(shown)
    annotation = Annotated[shown, typer.Option(*flag, help=text, **limits)]
    parameter = inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
    return parameter, read


def _kind(hint: Any) -> tuple[type, type | None]:
    """Type of a value on the command line, and of its parts where it is a list."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        lists = [part for part in parts if _kind(part)[1] is not None]
        return _kind(lists[0] if lists else parts[0])
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0]), None
    if get_origin(hint) in (list, tuple, collections.abc.Sequence):
        return list, _kind(get_args(hint)[0])[0]
    return (hint if hint in (bool, int, float, Path) else str), None


def _same(value: Any) -> Any:
    return value


def _read_list(name: str, item: type, text: str | None) -> list[Any] | None:
    parts = split_list(text)
    try:
        return None if parts is None else [item(part) for part in parts]
    except ValueError as error:
        raise OptionError(
            f"--{_hyphens(name)} is '{text}'; expected numbers with commas between them, such as 0.2,0.5."
        ) from error


def _former_parameter(name: str, old: Former) -> inspect.Parameter:
    flag = f"--{_hyphens(name)}" + (f"/--no-{_hyphens(name)}" if old.kind is bool else "")
    kind: Any = _optional(old.kind)
    annotation = Annotated[kind, typer.Option(flag, hidden=True)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _warn(old: str, new: str) -> None:
    typer.secho(
        f"Warning: {old} was renamed to {new}; the old name stops working in scMamba {REMOVED_IN}.",
        fg="yellow",
        err=True,
    )


def _optional(kind: Any) -> Any:
    return Union[kind, None]  # noqa: UP007  # not kind | None: kind may be a Literal, which is no type
