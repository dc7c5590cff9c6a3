"""One list of options: Python, the command line, the server and R agree with the options of each verb."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

import scmamba
from scmamba.cli.main import app
from scmamba.serve.verbs import TASKS, check_options
from scmamba.utils.options import Options

ROOT = Path(scmamba.__file__).parent
COMMANDS = typer.main.get_command(app).commands


def verbs() -> dict[str, type[Options]]:
    """Options of every verb that declares some."""
    found: dict[str, type[Options]] = {}
    for file in sorted(ROOT.glob("*/options.py")):
        if file.parent.name in ("utils", "cli"):
            continue
        module = importlib.import_module(f"scmamba.{file.parent.name}.options")
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, Options)
                and value.verb not in ("", "training")
            ):
                found[value.verb] = value
    return found


VERBS = verbs()
#: Parameters that are data or objects of Python and not options.
DATA = {
    *("adata", "data", "reference", "model", "markers", "verbose", "copy", "return_result"),
    *("config", "folder", "overwrite", "key_added", "genes", "source", "target"),
}


def function(verb: str) -> Any:
    """The public function of a verb."""
    for module in (scmamba, scmamba.deg, scmamba.training, scmamba.datasets):
        if hasattr(module, verb):
            return getattr(module, verb)
    raise AssertionError(f"there is no function {verb}")


def plain(value: Any) -> Any:
    """A default in comparable form: sequences are lists, paths are strings, numbers of equal value are equal."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


@pytest.mark.parametrize("verb", VERBS)
def test_python_signatures_have_the_options_and_their_defaults(verb):
    parameters = inspect.signature(function(verb)).parameters
    for name, default in VERBS[verb].defaults().items():
        if name not in parameters:
            assert name in DATA, f"{verb}() has no parameter {name}"
            continue
        given = parameters[name].default
        required = given is inspect.Parameter.empty
        assert required or plain(given) == plain(default), (verb, name, given, default)


@pytest.mark.parametrize("verb", VERBS)
def test_every_scalar_parameter_is_an_option(verb):
    known = VERBS[verb].defaults()
    hints = inspect.unwrap(function(verb)).__annotations__  # as they are written
    for name, hint in hints.items():
        if name == "return" or name in DATA or name in known:
            continue
        kinds = {part.strip() for part in str(hint).split("|")}
        assert not kinds & {"str", "int", "float", "bool"}, f"{verb}({name}=) is no option"


#: Commands that are not named after their verb.
COMMAND = {"brain_cohort": "cohort"}
#: Options of a command that runs two verbs.
SAID_FOR_BOTH_TESTS = {("find_markers", "covariates"), ("find_markers", "test")}


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_has_the_options_their_help_and_defaults(verb):
    command = COMMANDS.get(COMMAND.get(verb, verb.replace("_", "-")))
    if command is None:
        assert verb in ("zlm", "pseudobulk", "finetune_on"), f"there is no command for {verb}"
        return
    by_name = {p.name: p for p in command.params}
    options = VERBS[verb]
    for field in options.__dataclass_fields__.values():
        if field.name not in by_name or (verb, field.name) in SAID_FOR_BOTH_TESTS:
            continue
        parameter, text = by_name[field.name], options.help(field.name)
        assert parameter.help.startswith(text.rstrip(".")), (verb, field.name)
        if not isinstance(field.default, (list, tuple)) and not parameter.required:
            assert parameter.default == field.default, (verb, field.name)
        for bound, end in (("minimum", "min"), ("maximum", "max")):
            limit = field.metadata[bound]
            if limit is not None and not field.metadata["exclusive"]:
                # Typer stores a range in the parameter; before 0.27 in its type.
                there = parameter if hasattr(parameter, end) else parameter.type
                assert getattr(there, end) == limit, (verb, field.name, bound)
    shared = set(by_name) & set(options.defaults())
    assert len(shared) >= 0.5 * len(options.defaults()) or verb == "find_markers", shared


#: Verb -> task of the server, and the options that it requires.
SERVED = {
    "impute": ("impute", {}),
    "embed": ("embed", {}),
    "annotate": ("annotate", {}),
    "find_doublets": ("find_doublets", {}),
    "find_markers": ("find_markers", {"groupby": "g", "group1": "a"}),
    "robustness": ("robustness", {"condition_key": "g"}),
    "finetune_on": ("finetune", {}),
}
FORMER_TASKS = {"find_doublets": "doublets", "find_markers": "markers"}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb in SERVED])
def test_the_server_takes_the_same_options_in_the_same_ranges(verb):
    task, needed = SERVED[verb]
    task = task if task in TASKS else FORMER_TASKS[verb]
    for field in VERBS[verb].__dataclass_fields__.values():
        name, default, meta = field.name, field.default, field.metadata
        if check_options(task, {**needed, name: None}) is not None:
            continue  # not an option of the server; that set is tested with it
        if isinstance(default, (str, bool, int, float)) and default != -math.inf:
            assert check_options(task, {**needed, name: default}) is None, (verb, name, default)
        for limit, step in ((meta["minimum"], -1), (meta["maximum"], 1)):
            if limit is not None:
                beyond = type(default)(limit + step) if default is not None else limit + step
                assert check_options(task, {**needed, name: beyond}) is not None, (verb, name)


#: Names of R's arguments if they are not Python's with dots.
IN_R = {
    "ScMambaImpute": ("impute", {"batch": "batch_key"}),
    "ScMambaEmbed": ("embed", {}),
    "ScMambaAnnotate": ("annotate", {"labels": "label_key", "donor": "donor_key"}),
    "ScMambaDoublets": ("find_doublets", {"sample": "sample_key", "labels": "label_key"}),
    "ScMambaAmbient": (
        "ambient_rna",
        {"sample": "sample_key", "labels": "label_key", "corrected.assay": "corrected_layer"},
    ),
    "ScMambaFindMarkers": ("find_markers", {"group.by": "groupby", "latent.vars": "covariates"}),
    "ScMambaRobustness": (
        "robustness",
        {"group.by": "condition_key", "donor": "donor_key", "cell.type": "label_key"},
    ),
}
#: Arguments of R with the values that R users write for the same option.
R_HAS_ITS_OWN = {"layer", "layers", "reference_layer", "overwrite", "n_jobs", "seurat"}


@pytest.fixture(scope="module")
def formals() -> dict[str, dict[str, Any]]:
    """Default of every argument of the R functions, as R evaluates it."""
    program = """
    found <- list()
    for (file in list.files("R", full.names = TRUE)) for (line in as.list(parse(file, keep.source = FALSE))) {
      if (is.call(line) && identical(line[[1]], as.name("<-")) && is.call(line[[3]]) &&
          is.name(line[[2]]) && startsWith(as.character(line[[2]]), "ScMamba") &&
          identical(line[[3]][[1]], as.name("function"))) {
        values <- list()
        for (name in names(line[[3]][[2]])) {
          if (identical(line[[3]][[2]][[name]], quote(expr = ))) next
          value <- tryCatch(eval(line[[3]][[2]][[name]], baseenv()), error = function(e) NULL)
          values[[name]] <- if (is.null(value)) NA else if (is.function(value)) next else value
        }
        found[[as.character(line[[2]])]] <- values
      }
    }
    quoted <- function(x) if (!is.atomic(x) || anyNA(x)) "null" else if (is.character(x)) encodeString(x, quote = '"') else
      if (is.logical(x)) tolower(x) else sub("Inf", "Infinity", format(x, digits = 15, trim = TRUE))
    each <- vapply(names(found), function(f) paste0('"', f, '": {', paste(vapply(names(found[[f]]), function(n)
      paste0('"', n, '": [', paste(quoted(found[[f]][[n]]), collapse = ", "), ']'), ""), collapse = ", "), "}"), "")
    cat("{", paste(each, collapse = ",\\n"), "}")
    """
    if shutil.which("Rscript") is None:
        pytest.skip("R is not installed")
    done = subprocess.run(
        ["Rscript", "--vanilla", "-e", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parents[1],
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("generic", [g for g, (verb, _) in IN_R.items() if verb in VERBS])
def test_the_defaults_of_r_are_those_of_python(generic, formals):
    verb, names = IN_R[generic]
    defaults = VERBS[verb].defaults()
    methods = {name: values for name, values in formals.items() if name.startswith(f"{generic}.")}
    assert methods, f"there is no method of {generic}"
    compared = 0
    for method, values in methods.items():
        for argument, given in values.items():
            name = names.get(argument, argument.replace(".", "_"))
            if name not in defaults or name in R_HAS_ITS_OWN:
                continue
            expected = plain(defaults[name])
            found = (
                given
                if isinstance(expected, Sequence) and not isinstance(expected, str)
                else given[0]
            )
            assert found == expected, (method, argument, found, expected)
            compared += 1
    assert compared >= 3
