"""Old names work for one version and warn."""

import dataclasses
from typing import ClassVar

import pytest

from scmamba.utils.deprecation import renamed_function, renamed_parameters
from scmamba.utils.errors import OptionError
from scmamba.utils.options import Options, option


@renamed_parameters({"method": {"rates": "ensemble"}}, batch="batch_key")
def verb(data, *, batch_key=None, method="ensemble"):
    return data, batch_key, method


def test_old_parameter_warns_and_reaches_the_new_one():
    with pytest.warns(
        DeprecationWarning, match=r"verb\(batch=\) was renamed to verb\(batch_key=\)"
    ) as caught:
        assert verb(1, batch="donor") == (1, "donor", "ensemble")
    assert caught[0].filename == __file__


def test_old_value_warns_and_becomes_the_new_one():
    with pytest.warns(DeprecationWarning, match="method='ensemble'"):
        assert verb(1, method="rates") == (1, None, "ensemble")


def test_new_names_do_not_warn(recwarn):
    assert verb(1, batch_key="donor", method="masked") == (1, "donor", "masked")
    assert not recwarn


def test_both_names_at_once_are_refused():
    with pytest.raises(TypeError, match="both batch= and batch_key="):
        verb(1, batch="donor", batch_key="donor")


def test_old_function_warns():
    old = renamed_function("old_verb", verb)
    with pytest.warns(DeprecationWarning, match=r"old_verb\(\) was renamed to verb\(\)"):
        assert old(2, batch_key="x") == (2, "x", "ensemble")


@dataclasses.dataclass(frozen=True)
class VerbOptions(Options):
    verb: ClassVar[str] = "verb"
    error_rate: float = option(0.05, "Share.", minimum=0, maximum=1, exclusive=True)
    passes: int = option(10, "Groups.", minimum=1)
    method: str = option("fast", "How.", choices=("fast", "network"))


def test_options_have_defaults_and_refuse_other_names():
    assert VerbOptions.defaults() == {"error_rate": 0.05, "passes": 10, "method": "fast"}
    assert VerbOptions.from_mapping({"passes": 3}).passes == 3
    with pytest.raises(TypeError, match="no option pases"):
        VerbOptions.from_mapping({"pases": 3})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"error_rate": 0}, "between 0 and 1"),
        ({"error_rate": 1.0}, "between 0 and 1"),
        ({"error_rate": float("nan")}, "between 0 and 1"),
        ({"passes": 0}, "at least 1"),
        ({"method": "slow"}, "one of 'fast', 'network'"),
    ],
)
def test_options_out_of_range_are_refused(given, expected):
    with pytest.raises(OptionError, match=expected):
        VerbOptions(**given)
