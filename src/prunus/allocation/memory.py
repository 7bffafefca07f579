"""Blocks that remember: a block that is given what it was given before answers what it answered before.

With it, a forward pass in which one layer was disturbed computes that layer's block and what depends on it, and nothing
else: neither the blocks before it nor a tower beside it. What is remembered is compared, never assumed, so the result is
that of the whole forward pass, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.modules import replaced


@dataclass
class _Call:
    """One call of a block, and the versions of its tensors then: what has been written to since is not trusted."""

    inputs: list[Any]
    structure: Any
    output: Any
    versions: list[int]

    @property
    def is_intact(self) -> bool:
        return self.versions == _versions(self.inputs, self.output)


class RememberingBlocks:
    """Blocks of a model that answer from memory where they can.

    Args:
        blocks: paths of modules whose output depends on nothing but their arguments and weights.

    Attributes:
        computed, remembered: how many calls were computed and how many answered.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[str]):
        self._model, self._blocks = model, tuple(dict.fromkeys(blocks))
        self._calls: dict[str, list[_Call]] = {}
        self._recording = False
        self._disturbed: str | None = None
        self._inside: str | None = None
        self.computed = self.remembered = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """While the context is open, the blocks' forward is replaced."""
        with ExitStack() as cleanup:
            cleanup.callback(self._calls.clear)
            for path in self._blocks:
                block = self._model.get_submodule(path)
                cleanup.enter_context(replaced(block, self._answering(path, block.forward)))
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While the context is open, everything is computed and remembered; what was remembered before is forgotten."""
        self._calls.clear()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    @contextmanager
    def disturbed(self, block: str) -> Iterator[None]:
        """While the context is open, this block always computes."""
        self._disturbed = block
        try:
            yield
        finally:
            self._disturbed = None

    def _answering(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            inputs, structure = pytree.tree_flatten((args, kwargs))
            if not self._recording and path != self._disturbed:
                for call in self._calls.get(path, ()):
                    if call.structure == structure and call.is_intact and all(map(_same, inputs, call.inputs)):
                        self.remembered += 1
                        return call.output
            output = forward(*args, **kwargs)
            self.computed += 1
            if self._recording:
                call = _Call(inputs, structure, output, _versions(inputs, output))
                self._calls.setdefault(path, []).append(call)
            return output

        return answer


def _same(new: Any, old: Any) -> bool:
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        if new is old:
            return True
        if torch._C._functorch.is_batchedtensor(new):
            return False  # it depends on the noises of a vmap
        return new.shape == old.shape and new.dtype == old.dtype and torch.equal(new, old)
    return isinstance(new, bool | int | float | str | None) and type(new) is type(old) and bool(new == old)


def _versions(*values: Any) -> list[int]:
    return [leaf._version for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
