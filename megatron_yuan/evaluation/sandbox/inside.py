"""What runs inside: the program, which answers calls, and in a process of its own the tests, which make them.

The tests alone have the way to the verdict; the program's process holds neither their text nor the values expected.
Between them go lines of JSON that decode to plain values only: no object of the program reaches the tests, so none can
say that it equals everything. Run as `python -c THIS program|tests REPLY_BYTES`, by itself: standard library only.

Descriptors: 3 what comes, 4 what goes, 5 (tests alone) the verdict.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

COME, GO, VERDICT = 3, 4, 5
CONTAINERS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
NUMBERS: dict[str, Callable[[Any], Any]] = {"Decimal": Decimal, "Fraction": Fraction}


def encode(value: Any) -> Any:
    """A value as JSON holds it; a subclass of a plain type as that type. TypeError for anything else."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"int": hex(int.__index__(value))}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, list):
        return [encode(each) for each in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(each)] for key, each in dict.items(value)]}
    if isinstance(value, (tuple, set, frozenset)):
        kind = next(name for name, make in CONTAINERS.items() if isinstance(value, make))  # type: ignore[arg-type]
        return {kind: [encode(each) for each in value]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, (Decimal, Fraction)):
        return {type(value).__name__: str(value)}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def decode(value: Any) -> Any:
    """What `encode` was given. ValueError, KeyError or TypeError for what it did not make."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        raise ValueError("not encoded")
    ((kind, held),) = value.items()
    if kind == "int":
        return int(held, 16)
    if kind == "float":
        return float.fromhex(held)
    if kind == "dict":
        return {decode(key): decode(each) for key, each in held}
    if kind == "bytes":
        return bytes.fromhex(held)
    if kind == "complex":
        return complex(float.fromhex(held[0]), float.fromhex(held[1]))
    if kind in NUMBERS:
        if len(held) > 1000:
            raise ValueError("too long a number")
        return NUMBERS[kind](held)
    return CONTAINERS[kind](decode(each) for each in held)


def send(descriptor: int, message: Any) -> None:
    """One line."""
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


class Lines:
    """Lines from a descriptor. EOFError at its end, ValueError for one that is too long."""

    def __init__(self, descriptor: int, most: int) -> None:
        self._descriptor, self._most, self._rest = descriptor, most, bytearray()

    def next(self) -> Any:
        """The next line's message."""
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) > self._most:
                raise ValueError("too long")
            new = os.read(self._descriptor, 65536)
            if not new:
                raise EOFError
            self._rest += new
        line, self._rest = bytes(self._rest[:end]), self._rest[end + 1 :]
        return json.loads(line)


class ProgramError(Exception):
    """What the program's function raised, or why it has no answer."""


def program_side(most: int) -> None:
    """Run the program, then answer calls of its function."""
    lines = Lines(COME, most)
    job = lines.next()
    # A module that is known by its name, as dataclasses, typing and pickle look classes' modules up.
    sys.modules["program"] = ModuleType("program")
    names = vars(sys.modules["program"])
    try:
        exec(compile(job["program"], "program.py", "exec"), names)
        function = names[job["entry_point"]]
        send(GO, {"ready": True})
    except BaseException as error:
        send(GO, {"raised": describe(error)})
        return
    while True:
        try:
            call = lines.next()
        except EOFError:
            return
        try:
            keywords = {name: decode(each) for name, each in call["keywords"].items()}
            answer = {"returned": encode(function(*[decode(each) for each in call["arguments"]], **keywords))}
        except BaseException as error:
            answer = {"raised": describe(error)}
        send(GO, answer)


def describe(error: BaseException) -> str:
    """Its kind; the words are the program's own, and may be long."""
    return f"{type(error).__name__}: {str(error)[:200]}" if isinstance(error, TypeError) else type(error).__name__


def test_side(most: int) -> None:
    """Run the tests with calls to the program in the place of its function, then say what came of it."""
    job = Lines(0, 2**26).next()
    lines = Lines(COME, most)

    def ask(message: Any) -> Any:
        try:
            if message is not None:
                send(GO, message)
            answer = lines.next()
            if "raised" in answer:
                raise ProgramError(f"it raised {str(answer['raised'])[:300]}")
            return answer.get("ready") if message is None else decode(answer["returned"])
        except (EOFError, BrokenPipeError):
            raise ProgramError("it ended early") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError):
            raise ProgramError("what it answered is no plain value") from None

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        sent = {name: encode(each) for name, each in keywords.items()}
        return ask({"arguments": [encode(each) for each in arguments], "keywords": sent})

    try:
        ask(None)
        # Functions that the prompt itself has are the tests' to use; the one asked for is the program's.
        names: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["prompt"], "prompt.py", "exec"), names)
        names[job["entry_point"]] = candidate
        exec(compile(job["test"], "tests.py", "exec"), names)
        names["check"](candidate)
        verdict = {"passed": True, "reason": "passed"}
    except AssertionError:
        verdict = {"passed": False, "reason": "wrong answer"}
    except ProgramError as error:
        verdict = {"passed": False, "reason": str(error)}
    except BaseException as error:
        verdict = {"passed": False, "reason": f"the tests raised {type(error).__name__}"}
    send(VERDICT, verdict)


if __name__ == "__main__":
    {"program": program_side, "tests": test_side}[sys.argv[1]](int(sys.argv[2]))
