"""Trial runs: whether a module computes what a layout says, tried on a small copy of it that carries no hooks.

The copy keeps the module's outer widths and has a handful of hidden neurons with random weights. It costs next to
nothing whatever the size of the model, and it also proves that the module reads its hidden width off its layers,
which is what narrowing relies on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from prunus.anatomy.alike import Verdicts
from prunus.anatomy.layers import Linear

NEURONS = 5
"""Hidden neurons of the copy: none of the sizes that models have, so that a width written down somewhere shows."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_MLPS = Verdicts[str]()
"""Why a module is no MLP of its layers; empty where it is one."""


class MisfitError(Exception):
    """A layout does not describe a module; the message says why."""


def on_the_cpu() -> AbstractContextManager[object]:
    """While the context is open, tensors are made on the CPU. Where they are anyway there is nothing to do, and torch need not look into
    every call."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def trial_numbers() -> Iterator[None]:
    """While the context is open, numbers are made on the CPU and in fp32, wherever and in which type a model is just being built, and
    computed as they are: a verdict does not depend on who asks."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), on_the_cpu():
            yield
    finally:
        torch.set_default_dtype(default)


def linear_at(module: nn.Module, path: str) -> Linear:
    """The linear layer or `Conv1D` of a module at a path.

    Raises:
        MisfitError: there is none, or one whose weight cannot be cut: wrapped by an adapter, quantised, reparametrised.
    """
    try:
        found = module.get_submodule(path)
    except AttributeError:
        raise MisfitError(f"it has no {path}") from None
    if hasattr(found, "base_layer"):
        raise MisfitError(
            f"its {path} is {_qualified(found)}, which wraps the layer in an adapter; merge the adapter first "
            "(merge_and_unload)"
        )
    if not isinstance(found, nn.Linear | Conv1D):
        raise MisfitError(f"its {path} is {_qualified(found)}, not a linear layer")
    if not isinstance(found._parameters.get("weight"), Tensor):
        raise MisfitError(
            f"its {path} computes its weight from other parameters; make it an ordinary one first "
            "(prune.remove, remove_parametrizations)"
        )
    if not found.weight.is_floating_point():
        raise MisfitError(f"its {path} is quantised: its weight is {str(found.weight.dtype).removeprefix('torch.')}")
    if found.weight.ndim != 2:
        raise MisfitError(f"the weight of its {path} has {found.weight.ndim} dimensions, not 2: is it sharded?")
    return found


def keeps_zero(module: nn.Module, path: str) -> bool:
    """Whether the activation at a path maps 0 to 0, so that a neuron that is masked before it is silent.

    Raises:
        MisfitError: there is none.
    """
    head, _, name = path.rpartition(".")
    activation: Callable[[Tensor], Tensor] | None = getattr(without_hooks(module.get_submodule(head)), name, None)
    if activation is None:
        raise MisfitError(f"it has no {path}")
    with trial_numbers():
        return bool(activation(torch.zeros(1)).abs().max() == 0)


def prove_mlp(module: nn.Module, up: str, down: str, gate: str | None, activation: str) -> None:
    """Tries whether a module computes exactly the MLP of its layers at these paths, as `layouts.Mlp` describes it.

    Raises:
        MisfitError: it does not, or it cannot be tried.
    """
    names = tuple(dict.fromkeys(name for name in (up, gate, down) if name is not None))
    layers = {name: linear_at(module, name) for name in names}
    own = sum(1 if layer.bias is None else 2 for layer in layers.values())
    if len(list(module.parameters())) != own or list(module.buffers()):
        raise MisfitError("it has weights besides those of an MLP")
    why = _MLPS.of(
        (up, down, gate, activation), module, lambda: _mlp_objection(module, up, down, gate, activation, layers)
    )
    if why:
        raise MisfitError(why)


def _mlp_objection(
    module: nn.Module, up: str, down: str, gate: str | None, activation: str, layers: Mapping[str, Linear]
) -> str:
    """What a trial says against an MLP; nothing where it holds."""
    copy = without_hooks(module)
    act = getattr(copy, activation)
    neurons = 2 * NEURONS if gate == up else NEURONS
    generator = torch.Generator().manual_seed(0)
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        rows, columns = (rows, NEURONS) if name == down else (neurons, columns)
        weight = torch.randn(rows, columns, generator=generator, dtype=torch.float32) / columns**0.5
        bias = None if layer.bias is None else torch.randn(rows, generator=generator, dtype=torch.float32)
        copy.get_submodule(name).__dict__["_parameters"] = {"weight": weight, "bias": bias}
    x = torch.randn(2, 3, layers[up].weight.shape[1], generator=generator, dtype=torch.float32)

    def apply(name: str, value: Tensor) -> Tensor:
        weights = copy.get_submodule(name)._parameters
        return F.linear(value, weights["weight"], weights["bias"])  # type: ignore[arg-type]

    try:
        with trial_numbers():
            made = apply(up, x)
            gated, raised = made.chunk(2, -1) if gate == up else (apply(gate, x) if gate else made, made)
            hidden = act(gated) * raised if gate else act(made)
            expected, found = apply(down, hidden), copy(x)
            proved = isinstance(found, Tensor) and torch.allclose(found, expected, atol=1e-5)
    except Exception as error:  # a stranger's forward may raise anything
        return f"a trial run of it failed ({type(error).__name__}: {error})"
    return "" if proved else "a trial run of it does not give what an MLP of its layers gives"


def without_hooks(module: ModuleT) -> ModuleT:
    """A copy of a module in evaluation mode, without any hook of it or its children; tensors are shared.

    Hooks are all of torch's and those by which accelerate moves weights.
    """
    twin = object.__new__(type(module))
    state = dict(vars(module))
    state |= {name: value for name, value in vars(nn.Module()).items() if name.endswith(_HOOKS)}
    state["training"] = False
    state.pop("_compiled_call_impl", None)
    state.pop("_hf_hook", None)
    forward = state.pop("_old_forward", state.pop("forward", None))
    if forward is not None:
        state["forward"] = _rebound(forward, module, twin)
    state["_parameters"], state["_buffers"] = dict(module._parameters), dict(module._buffers)
    state["_modules"] = {
        name: None if child is None else without_hooks(child) for name, child in module._modules.items()
    }
    vars(twin).update(state)
    return twin


_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def _rebound(forward: Any, old: nn.Module, new: nn.Module) -> Any:
    """A forward that was set on one module, for another one."""
    if isinstance(forward, MethodType) and forward.__self__ is old:
        return MethodType(forward.__func__, new)
    if isinstance(forward, functools.partial) and forward.args[:1] == (old,):
        return functools.partial(forward.func, new, *forward.args[1:], **forward.keywords)
    return forward


def _qualified(module: nn.Module) -> str:
    """The type of a module and where it comes from: `peft.tuners.lora.layer.Linear`."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
