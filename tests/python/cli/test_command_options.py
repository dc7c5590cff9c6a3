"""Options of commands that are made from the options of a verb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import typer
from typer.testing import CliRunner

from scmamba.cli.errors import CommandGroup
from scmamba.cli.options import Former, options_of
from scmamba.utils.options import Options, option


@dataclass(frozen=True)
class SomeOptions(Options):
    """One option of each type."""

    verb: ClassVar[str] = "some"
    method: Literal["a", "b"] | None = option(None, "Which.", choices=("a", "b"))
    steps: int = option(300, "How many.", minimum=0, maximum=1000, unit="steps")
    rate: float = option(0.05, "What share.", minimum=0, maximum=1, exclusive=True)
    fast: bool = option(False, "Quickly.")
    cache: bool = option(True, "Keep.")
    ratios: Sequence[float] = option((0.1, 0.5), "Shares.")
    keys: str | Sequence[str] | None = option(None, "Columns.")
    model: str | None = option(None, "Model.")
    array: Any = option(None, "An array.", python_only=True)
    verbose: bool = option(True, "Messages.")


@pytest.fixture
def run():
    """Run a command with these options; its arguments, and the printed text."""
    app = typer.Typer(cls=CommandGroup)
    given: list[dict[str, Any]] = []

    @app.command()
    @options_of(
        SomeOptions,
        flags={"model": ("--model", "-m")},
        former={
            "adapt": Former("steps", bool, lambda on: 300 if on else 0),
            "how": Former("method"),
        },
    )
    def some(data: str, **options: Any) -> None:
        given.append({"data": data, **options})
        SomeOptions.from_mapping(options)

    @app.command()
    def other() -> None:
        pass

    def call(line: str, code: int = 0) -> tuple[dict[str, Any], str]:
        given.clear()
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == code, result.output
        return (given[0] if given else {}), " ".join(result.output.split())

    return call


def test_defaults_are_those_of_the_verb(run):
    given, _ = run("some x")
    expected = {k: v for k, v in SomeOptions.defaults().items() if k not in ("array", "verbose")}
    assert given == {"data": "x", **expected, "ratios": [0.1, 0.5]}


def test_every_type_is_read(run):
    given, _ = run(
        "some x --method b --steps 7 --rate 0.2 --fast --no-cache --ratios 0.3,1 --keys u,v -m w"
    )
    assert given == dict(
        data="x", method="b", steps=7, rate=0.2, fast=True, cache=False, ratios=[0.3, 1.0],
        keys=["u", "v"], model="w",
    )  # fmt: skip


@pytest.mark.parametrize(
    "bad", ["--method c", "--steps -1", "--steps 1001", "--steps 1.5", "--verbose"]
)
def test_values_out_of_range_are_a_usage_error(run, bad):
    run(f"some x {bad}", 2)


def test_errors_of_open_bounds_and_lists_are_one_sentence(run):
    assert "Error: rate is 1.0; expected" in run("some x --rate 1", 1)[1]
    assert "Error: --ratios is 'a'; expected numbers" in run("some x --ratios a", 1)[1]


def test_former_options_warn_work_and_are_hidden(run):
    given, warning = run("some x --no-adapt --how b")
    assert (given["steps"], given["method"]) == (0, "b") and "adapt" not in given
    assert "--no-adapt" in warning or "--adapt was renamed to --steps" in warning
    assert "--how was renamed to --method" in warning
    assert run("some x --adapt")[0]["steps"] == 300
    helped = run("some --help")[1]
    assert "--adapt" not in helped and "--how" not in helped and "--array" not in helped
    assert "How many (steps)." in helped and "0<=x<=1000" in helped
