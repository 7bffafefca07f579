"""What every plan shares: it is frozen, it is JSON of a version, and a damaged one is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from prunus.errors import PrunusError
from prunus.storage import refuse_newer, results_file, write_text

LIMIT = 100 << 20
"""Characters of a plan; one of a thousand matrices has two hundred thousand."""


class PlanFile(BaseModel):
    """A decision about one model, as data."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    format: str
    """Kind of file and its version; earlier versions are read, too."""

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, data: object) -> object:
        current = str(cls.model_fields["format"].default)
        if not isinstance(data, Mapping) or data.get("format", current) == current:
            return data
        written = str(data["format"])
        refuse_newer("format", written, current)
        if re.fullmatch(rf"{current.partition('/')[0]}/[1-9]\d*", written) is None:
            return data
        return {**data, "format": current}

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically.

        Raises:
            PrunusError: nothing can be written there.
        """
        write_text(results_file(path), json.dumps(self.model_dump(mode="json"), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a plan.

        Raises:
            PrunusError: the file is absent or is not a plan.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(LIMIT + 1)
        except OSError as error:
            raise PrunusError("plan", str(path), f"it cannot be read ({error.strerror})") from None
        except ValueError:
            raise PrunusError("plan", str(path), "the plan is damaged: it is no text in UTF-8") from None
        if len(text) > LIMIT:
            raise PrunusError("plan", str(path), f"the plan is damaged: no plan has more than {LIMIT:,} characters")
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, data: str | dict[str, Any], source: str) -> Self:
        """A plan from JSON text or its object; `source` names the file in errors."""
        try:
            return cls.model_validate_json(data) if isinstance(data, str) else cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, PrunusError):
                raise PrunusError(f"plan {cause.field}", source, f"{cause.value}: {cause.remedy}") from None
            where = ".".join(str(part) for part in first["loc"]) or "JSON"
            raise PrunusError(f"plan {where}", source, f"the plan is damaged: {first['msg']}") from None
