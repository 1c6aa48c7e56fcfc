"""Worked examples that the harness ships: GSM8K's eight with reasoning, MATH's four of the Minerva paper.

Those that the paper used are not published in a form that can be had. The harness's are read where it is installed.
"""

from __future__ import annotations

import ast
from typing import Any

import yaml

from megatron_yuan.errors import ConfigError
from megatron_yuan.evaluation.harness import harness_folder


def gsm8k() -> list[dict[str, Any]]:
    """`question` and `target` of eight."""

    class Loader(yaml.SafeLoader):
        """Leaves functions that a task names alone."""

    Loader.add_constructor("!function", lambda loader, node: None)
    path = harness_folder() / "gsm8k" / "gsm8k-cot.yaml"
    try:
        samples = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)["fewshot_config"]["samples"]
        return [{"question": each["question"], "target": each["target"]} for each in samples]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise _missing("GSM8K", path, error) from None


def math() -> list[dict[str, Any]]:
    """`question` and `target` of four."""
    path = harness_folder() / "minerva_math" / "utils.py"
    try:
        # Read, not imported: that module asks for packages that grade answers in a way not used here.
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (function,) = [
            each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "list_fewshot_samples"
        ]
        (returned,) = [each.value for each in function.body if isinstance(each, ast.Return)]
        assert returned is not None
        return [{"question": each["problem"], "target": each["solution"]} for each in ast.literal_eval(returned)]
    except (OSError, SyntaxError, ValueError, KeyError, AssertionError) as error:
        raise _missing("MATH", path, error) from None


def _missing(what: str, path: object, error: Exception) -> ConfigError:
    return ConfigError(
        f"the worked examples for {what} cannot be read from {path} ({error!r}); is this lm-eval 0.4.13?"
    )
