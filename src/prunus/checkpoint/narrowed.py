"""Narrowed checkpoints: extract a narrowed model, and teach transformers to load what it saves.

A saved model is a plain transformers checkpoint: `config.json` carries the plan in its `quantization_config` entry
(the only place where transformers lets a library reshape a model before its weights are read), and the weights are
safetensors of the narrowed shapes. Importing prunus registers the loading hook.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from prunus.anatomy import anatomy
from prunus.checkpoint.naming import keys_in_files
from prunus.errors import PrunusError
from prunus.plan import Plan
from prunus.structured.gates import remove_gates
from prunus.structured.surgery import narrow, restore_rotations

METHOD = "prunus"

Model = TypeVar("Model", bound=nn.Module)


def extract(model: Model, plan: Plan, inplace: bool = False) -> Model:
    """The physically smaller model that computes what the masked one does.

    Args:
        model: the model that was searched, with or without its gates.
        plan: `Search.plan()`, or any plan for this model. A model that was extracted before is narrowed further.
        inplace: narrow `model` itself, which saves the memory of a copy.

    Returns:
        A model of the same class. If it is a transformers model, `save_pretrained` and the stock `from_pretrained`
        round-trip it, in any process that imported prunus.

    Raises:
        PrunusError: the plan was made for another model.
    """
    parts = anatomy(model, plan.mirrors)
    plan.check(parts)
    small = model if inplace else copy.deepcopy(model)
    remove_gates(small)
    narrow(small, parts, plan)
    if isinstance(small, PreTrainedModel):
        before = plan_of(model)
        small.config.quantization_config = PrunusConfig(plan=plan if before is None else plan.after(before))
    return small


def plan_of(model: nn.Module) -> Plan | None:
    """The plan a model was narrowed by, or None if it is dense. A model built without weights has it, too."""
    recorded = getattr(getattr(model, "config", None), "quantization_config", None)
    if isinstance(recorded, dict) and recorded.get("quant_method") == METHOD:
        return Plan.parse(recorded["plan"], "config.json")
    return recorded.plan if isinstance(recorded, PrunusConfig) else None


@register_quantization_config(METHOD)
class PrunusConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` entry of a Prunus checkpoint."""

    def __init__(self, plan: Plan | dict[str, Any], **kwargs: Any):
        self.quant_method = METHOD
        self.plan = plan if isinstance(plan, Plan) else Plan.parse(plan, "config.json")

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "plan": self.plan.model_dump(mode="json")}

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunusConfig:
        return PrunusConfig(self.plan)


@register_quantizer(METHOD)
class PrunusLoader(HfQuantizer):  # type: ignore[misc]
    """Narrows a model on the meta device, between its construction and the reading of its weights."""

    requires_calibration = True
    quantization_config: PrunusConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is needed beyond prunus itself."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        plan = self.quantization_config.plan
        narrow(model, anatomy(model, plan.mirrors), plan)
        for file in kwargs.get("checkpoint_files") or ():
            _check_file(file, model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        plan = self.quantization_config.plan
        restore_rotations(model, plan)
        # From here on the model is an ordinary one: trainable, castable, and saved with its plan by its config.
        del model.hf_quantizer
        model.is_quantized = False
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _check_file(path: str, model: Any) -> None:
    """Names a damaged weight file, or a tensor that does not fit the plan, before transformers trips over it or, in some
    releases, passes over it."""
    if not str(path).endswith(".safetensors"):
        return
    try:
        with safe_open(str(path), framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PrunusError("weights", str(path), f"the file is damaged ({error}); save the model again") from None
    expected = model.state_dict()
    for name, key in keys_in_files(model, found).items():
        wanted = tuple(expected[name].shape)
        if found[key] != wanted:
            raise PrunusError(
                "weights", str(path), f"shape mismatch: {key} is {found[key]}, the plan asks for {wanted}"
            )
