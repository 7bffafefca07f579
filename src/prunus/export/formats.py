"""What models are exported to, and what each format needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from prunus.errors import PrunusError


@dataclass(frozen=True)
class Format:
    """A kind of graph that `transformers.exporters` writes, and that its runtime runs."""

    name: str
    """What the command line calls it."""
    config: str
    """Name of the class of its settings in `transformers.exporters`."""
    packages: tuple[str, ...] = ()
    """What writing and running it needs, beside torch."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that are always taken."""
    running: dict[str, Any] = field(default_factory=dict)
    """What its runtime is told beside the device, to compute in fp32 also where the machine would rather not."""

    def exporter(self, dynamic: bool) -> tuple[Any, Any]:
        """The exporter of transformers, and its settings.

        Args:
            dynamic: whether batch and lengths may differ from those of the inputs that are traced.

        Raises:
            PrunusError: transformers is too old, or a package is missing.
        """
        from transformers import exporters

        if not hasattr(exporters, "ExportedModel"):
            raise PrunusError(
                "--to",
                self.name,
                "this release of transformers cannot run what it exports; install transformers ≥ 5.23",
            )
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise PrunusError("--to", self.name, f"it needs {' and '.join(missing)}; run: pip install 'prunus[export]'")
        config = getattr(exporters, self.config)(dynamic=dynamic, **self.settings)
        return exporters.AutoHfExporter.from_config(config), config


FORMATS = {
    found.name: found
    for found in (
        Format("onnx", "OnnxConfig", ("onnx", "onnxscript", "onnxruntime")),
        # caches as inputs and outputs, as in the other formats, and not as state of the runtime
        Format(
            "openvino",
            "OpenVINOConfig",
            ("openvino",),
            {"stateful": False},
            {"config": {"INFERENCE_PRECISION_HINT": "f32"}},
        ),
        Format("torch", "DynamoConfig"),
    )
}
"""By name."""


def format_of(name: str) -> Format:
    """The format of this name.

    Raises:
        PrunusError: there is none.
    """
    if name not in FORMATS:
        raise PrunusError("--to", name, f"take one of {', '.join(FORMATS)}, gguf")
    return FORMATS[name]
