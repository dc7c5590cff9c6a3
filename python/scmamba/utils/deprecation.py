"""Old names of functions and parameters: they work for one version, with a warning that gives the new one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: The version in which names deprecated in 0.2.0 stop working.
REMOVED_IN = "0.3.0"


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that ``old`` is now called ``new``.

    Parameters
    ----------
    old, new
        What the user wrote and what to write instead, such as ``impute(batch=)`` and ``impute(batch_key=)``.
    stacklevel
        Frames between the warning and the line of the user.
    """
    warnings.warn(
        f"{old} was renamed to {new}; the old name stops working in scMamba {REMOVED_IN}.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def renamed_parameters(
    values: Mapping[str, Mapping[Any, Any]] | None = None, **new_by_old: str
) -> Callable[[F], F]:
    """Decorate a function so that it still takes the old names of its parameters.

    Parameters
    ----------
    values
        Renamed values of parameters, by the parameter's new name: ``{"method": {"rates": "ensemble"}}``.
    **new_by_old
        New name of each parameter by its old one.

    Returns
    -------
    A decorator. The function has the old names in ``former_names`` and ``former_values``.

    Raises
    ------
    TypeError
        When the decorated function is called with both the old and the new name of a parameter.

    Examples
    --------
    >>> @renamed_parameters(batch="batch_key")
    ... def impute(batch_key=None):
    ...     return batch_key
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     impute(batch="donor")
    'donor'
    >>> str(caught[0].message).split(";")[0]
    'impute(batch=) was renamed to impute(batch_key=)'
    """
    renamed_values = values or {}

    def decorate(function: F) -> F:
        # A method is named with its class, a class by itself: Client.annotate(labels=), Collection(label=).
        name = function.__qualname__.rsplit("<locals>.")[-1].removesuffix(".__init__")

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old, new in new_by_old.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"{name}() was given both {old}= and {new}=; {old}= is the old name of {new}=."
                    )
                warn_renamed(f"{name}({old}=)", f"{name}({new}=)")
                kwargs[new] = kwargs.pop(old)
            for parameter, new_values in renamed_values.items():
                given = kwargs.get(parameter)
                if isinstance(given, str) and given in new_values:
                    new = new_values[given]
                    warn_renamed(f"{name}({parameter}={given!r})", f"{name}({parameter}={new!r})")
                    kwargs[parameter] = new
            return function(*args, **kwargs)

        vars(wrapper).update(former_names=dict(new_by_old), former_values=dict(renamed_values))
        return wrapper  # type: ignore[return-value]

    return decorate


def renamed_function(old: str, new: F) -> F:
    """``new`` under its ``old`` name, with a warning at each call.

    Parameters
    ----------
    old
        The former name.
    new
        The function of today.

    Returns
    -------
    A function that warns and calls ``new``.
    """

    @functools.wraps(new)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        warn_renamed(f"{old}()", f"{new.__name__}()")
        return new(*args, **kwargs)

    wrapper.__name__ = wrapper.__qualname__ = old
    return wrapper  # type: ignore[return-value]
