"""Taps on a model: every tensor of tokens that enters or leaves a module is shown to a visitor, which may replace it.

Shapes: B batch, S sequence, T = B x S tokens, H hidden, K choices of a token, R rows of the routed experts.

Hooks see modules, known or not. Two functions are tapped as well, for they are parts of their own: `rotate`, and a
router's `choose`, which divides scores from decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from megatron_yuan.audit.arithmetic import replaced
from megatron_yuan.audit.layout import TokenView, row_view, token_view
from megatron_yuan.audit.parts import Place
from megatron_yuan.model import attention
from megatron_yuan.model.moe.experts import Experts, SharedExperts
from megatron_yuan.model.moe.routers.base import Router, Routing

Side = Literal["in", "out"]


class Visitor(Protocol):
    """Looks at what passes."""

    def visit(self, place: Place, tokens: Tensor) -> Tensor | None:
        """`tokens` [B, S, ...] is at `place`; returns what goes on instead, None for the same."""
        ...


class Taps:
    """The taps of one model; `start` before each forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._visitor: Visitor | None = None
        self._shape = (0, 0)
        self._open: list[str] = []  # modules being computed, the innermost last
        self._calls: Counter[tuple[str, Side, str]] = Counter()
        self._routing: dict[str, Routing] = {}  # by the path of the experts' layer
        self._states: dict[str, Tensor] = {}  # what entered it, [B, S, H]
        self.strange_rows: set[str] = set()
        """Experts whose rows were found not to be the tokens that routing sent there, so are not taken for them."""

    def start(self, visitor: Visitor, batch: int, sequence: int) -> None:
        """Begin a forward pass over [batch, sequence] tokens."""
        self._visitor, self._shape = visitor, (batch, sequence)
        self._open.clear()
        self._calls.clear()
        self._routing.clear()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Taps on, for a while."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                if path and type(module).forward is not nn.Module.forward:
                    before = module.register_forward_pre_hook(self._before(path), with_kwargs=True)
                    stack.callback(before.remove)
                    stack.callback(module.register_forward_hook(self._after(path)).remove)
                if isinstance(module, Router):
                    choose = self._function(module.choose, f"{path}.choose")
                    stack.enter_context(replaced(module, "choose", choose))
            stack.enter_context(replaced(attention, "rotate", self._function(attention.rotate, "rotate")))
            yield

    def through(self, path: str, side: Side, value: Any, leaf: str = "") -> Any:
        """Show what is of tokens in `value`: a tensor, a routing, or a tuple whose first element is the output."""
        if self._visitor is None:
            return value
        if isinstance(value, Routing):
            return self._routed(path, side, value)
        if type(value) is tuple and value and isinstance(value[0], Tensor):
            return (self.through(path, side, value[0], leaf), *value[1:])
        if not isinstance(value, Tensor):
            return value
        view = self._view(path, value)
        return value if view is None else self._shown(path, side, leaf, view, value)

    def _shown(self, path: str, side: Side, leaf: str, view: TokenView, value: Tensor) -> Tensor:
        assert self._visitor is not None
        instead = self._visitor.visit(Place(path, side, leaf, self._calls[path, side, leaf]), view.tokens)
        self._calls[path, side, leaf] += 1
        return value if instead is None else view.back(instead)

    def _routed(self, path: str, side: Side, routing: Routing) -> Routing:
        changed = {
            leaf: self.through(path, side, getattr(routing, leaf), leaf)
            for leaf in ("logits_TE", "experts_TK", "weights_TK")
        }
        routing = routing._replace(**changed)
        if routing.rows is not None:  # as many as are named now
            routing = routing._replace(rows=int((routing.experts_TK >= 0).sum()))
        return routing

    def _view(self, path: str, value: Tensor) -> TokenView | None:
        home, _, name = path.rpartition(".")
        if name == "experts" and home in self._routing:
            if home in self.strange_rows or not value.is_floating_point():
                return None
            return row_view(value, self._routing[home], *self._shape)
        return token_view(value, *self._shape)

    def _before(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._open.append(path)
            if self._visitor is None:
                return None
            if isinstance(module, Experts) and not isinstance(module, SharedExperts):
                self._check_rows(path, args[0])
            args = tuple(self.through(path, "in", each, _nth(i)) for i, each in enumerate(args))
            kwargs = {name: self.through(path, "in", each, name) for name, each in kwargs.items()}
            if args and isinstance(args[0], Tensor):
                self._states[path] = args[0]
            return args, kwargs

        return hook

    def _after(self, path: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            self._open.pop()
            output = self.through(path, "out", output)
            if isinstance(output, Routing):
                self._routing[path.rpartition(".")[0]] = output
            return output

        return hook

    def _function(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def tapped(*args: Any, **kwargs: Any) -> Any:
            path = name if "." in name or not self._open else f"{self._open[-1]}.{name}"
            args = tuple(self.through(path, "in", each, _nth(i)) for i, each in enumerate(args))
            return self.through(path, "out", function(*args, **kwargs))

        return tapped

    def _check_rows(self, path: str, x_RH: Tensor) -> None:
        home = path.rpartition(".")[0]
        routing, state = self._routing.get(home), self._states.get(home)
        if routing is None or state is None or home in self.strange_rows:
            return
        rows, tokens = row_view(x_RH, routing, *self._shape), token_view(state, *self._shape)
        if rows is None or tokens is None:
            self.strange_rows.add(home)
            return
        named_BSK = routing.experts_TK.unflatten(0, self._shape) >= 0
        expected = torch.where(named_BSK.unsqueeze(-1), tokens.tokens.unsqueeze(2), 0)
        if not torch.equal(rows.tokens, expected):
            self.strange_rows.add(home)


def _nth(i: int) -> str:
    return "" if i == 0 else f"input {i + 1}"
