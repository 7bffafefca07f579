"""Batches: whatever a model is called with, on its device and in its type; what is no batch is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusError, refusing

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def call_with_batch(model: nn.Module, batch: Any, device: torch.device | None = None) -> object:
    """`model(**batch)`, or `model(batch)` if it is no mapping; its tensors as `for_model` makes them."""
    batch = for_model(batch, model, device)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def for_model(batch: Any, model: nn.Module, device: torch.device | None = None) -> Any:
    """The batch as a model takes it: its tensors on a device, by default the model's, and floating ones in its type."""
    return _placed(batch, device or input_device(model), input_dtype(model))


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its weights or, of a model whose weights are elsewhere (offloaded), the
    one on which it runs."""
    runs_on = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if runs_on is not None:
        return torch.device(runs_on)
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def default_device() -> torch.device:
    """Where everything runs that is not trained: a GPU if there is one. The Trainer chooses for itself."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: str) -> bool:
    """Whether a kind of device has instructions for bf16; a CPU without them (x86 before AVX-512) takes nine times as long as in fp32."""
    if device != "cpu":
        return True
    knows = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(knows and knows())


def runs_in_bf16(model: nn.Module, wanted: bool) -> bool:
    """Whether a model that is wanted in bf16 runs in it, where it lies."""
    return wanted and has_bf16(input_device(model).type)


def bf16_autocast(model: nn.Module, wanted: bool, cached: bool = False) -> torch.autocast:
    """For running a model in bf16, where that is wanted and its device has instructions for it.

    Args:
        cached: whether cast weights are kept while it is open, which is half a second copy of the model.
    """
    device, runs = input_device(model).type, runs_in_bf16(model, wanted)
    return torch.autocast(device, torch.bfloat16, enabled=runs, cache_enabled=cached)


def input_dtype(model: nn.Module) -> torch.dtype | None:
    """The type in which a model takes pixels, sounds or embeddings: that of its first convolution, which makes patches or
    frames, or else of its first floating parameter; None if it has none."""
    own = (m.weight for m in model.modules() if isinstance(m, CONVOLUTIONS) and isinstance(m.weight, Tensor))
    for weights in (own, model.parameters()):
        for weight in weights:
            if weight.is_floating_point():
                return weight.dtype
    return None


def _placed(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(batch, Mapping):
        return {key: _placed(value, device, dtype) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_placed(item, device, dtype) for item in batch)
    if not isinstance(batch, Tensor):
        return batch
    return batch.to(device, dtype) if dtype is not None and batch.is_floating_point() else batch.to(device)


def checked(batches: Iterable[Any], given_to_model: bool = True) -> Iterator[Any]:
    """The batches one by one, each looked at before it is used.

    Args:
        given_to_model: whether a batch is what the model is called with; what a function of the caller's own takes is not
            looked at.

    Raises:
        PrunusError: at once, where a single batch stands for a list of them; later, where a batch is none.
    """
    if isinstance(batches, Mapping | Tensor | str | bytes) or not isinstance(batches, Iterable):
        raise PrunusError(
            "batches", type(batches).__name__, "give a list of batches, or anything that yields them; of a single one: [batch]"
        )  # fmt: skip
    if isinstance(batches, nn.Module):
        raise PrunusError("batches", type(batches).__name__, "this is a model; give a list of batches")
    return _checked_one_by_one(batches) if given_to_model else iter(batches)


def _checked_one_by_one(batches: Iterable[Any]) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        check_batch(batch, f"batch {number}")
        for name, value in tensors_of(batch):
            if value.is_floating_point() and not _is_mask(name) and not bool(torch.isfinite(value).all()):
                raise PrunusError(
                    "batches",
                    f"batch {number}: {name}",
                    "it holds NaN or infinity: not finite; look at how it was made",
                )
        yield batch


def check_batch(batch: Any, which: str = "batch") -> None:
    """Looks at the form of a batch, and not at its numbers.

    Raises:
        PrunusError: the form is none that a model can be called with; the error says which form would be right.
    """
    fault = _fault(batch) or next(filter(None, (_fault_of(name, tensor) for name, tensor in tensors_of(batch))), None)
    if fault is not None:
        what, remedy = fault
        raise PrunusError("batches", f"{which}: {what}", remedy)


AS_PROCESSORS_DO = "give mappings of tensors, as processors and tokenizers make them with return_tensors='pt'"


def _fault(batch: Any) -> tuple[str, str] | None:
    """What is wrong with a batch, and what to do about it."""
    if isinstance(batch, str | bytes):
        return "text", "tokenise it first: prunus.text_batches(tokenizer, text)"
    if isinstance(batch, list | tuple):
        return type(batch).__name__, (
            'a model is called with names: of (inputs, targets) give {"input_ids": inputs}, or pass a function of your own '
            "that knows what to do with it"
        )
    if batch is None or isinstance(batch, bool | int | float):
        return repr(batch), AS_PROCESSORS_DO
    if isinstance(batch, Tensor) and not batch.ndim:
        return "a single number", "give tensors with a batch dimension"
    return _fault_of_mapping(batch) if isinstance(batch, Mapping) else None


def _fault_of_mapping(batch: Mapping[Any, Any]) -> tuple[str, str] | None:
    for name, value in batch.items():
        if hasattr(value, "__array__") and not isinstance(value, Tensor):
            return f"{name} is an array", AS_PROCESSORS_DO
        if _holds_numbers(value):
            return f"{name} is a list of numbers", AS_PROCESSORS_DO
    return None if any(True for _ in tensors_of(batch)) else ("no tensor in it", AS_PROCESSORS_DO)


def _fault_of(name: str, tensor: Tensor) -> tuple[str, str] | None:
    """What is wrong with a tensor of a batch, and what to do about it."""
    if tensor.is_meta:
        return f"{name} is on meta", "it has a shape and no numbers; give real inputs"
    if not tensor.numel():
        return f"{name} is empty {tuple(tensor.shape)}", "it holds no sequence or no image; leave it out"
    if name.endswith("input_ids") and tensor.is_floating_point():
        return f"{name} is {tensor.dtype}", "ids are integers; use .long()"
    if name.endswith("input_ids") and tensor.ndim < 2:
        return f"{name} has shape {tuple(tensor.shape)}", "the batch dimension is missing; use ids[None]"
    if name == "attention_mask" and not tensor.is_floating_point() and not bool(tensor.any()):
        return "attention_mask is zero everywhere", "all of it is padding; leave it out"
    return None


def naming_batch(which: str = "batch") -> AbstractContextManager[None]:
    """While the context is open, what a model raises about its inputs becomes a refusal of the batch."""
    return refusing("batches", which, "the model cannot run it")


def calls_the_model(call: Callable[..., object] | None) -> bool:
    """Whether a batch is given to the model as it is, and not to a function of the caller's own.

    Raises:
        PrunusError: it is no function.
    """
    if call is not None and not callable(call):
        raise PrunusError("call", call, "give a function(model, batch) that runs the batch through the model")
    return call is None or getattr(call, "func", call) is call_with_batch


def tensors_of(batch: Any, name: str = "tensor") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a batch, with its name."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors_of(value, str(key))
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors_of(value, name)


def _holds_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, or of such lists."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True
    return False


def _is_mask(name: str) -> bool:
    return "mask" in name or "bias" in name
