"""Typed, frozen data whose errors name the field, the value and the remedy."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from prunus.errors import PrunusError
from prunus.extensions import load_installed, place_of

Share = Annotated[float, Field(ge=0, lt=1)]
"""A part of a whole, but not all of it."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""How many of something are held in memory at a time, or gone through at a time."""
Steps = Annotated[int, Field(ge=1, le=100_000_000)]
"""Steps of a training: a year of them at three a second."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes."""
Factor = Annotated[float, Field(ge=0, le=1e6)]
"""A weight of one term among others."""


TypedT = TypeVar("TypedT", bound="Typed")


class Typed(BaseModel):
    """Base of every method and recipe part: frozen, without unknown fields, NaN and infinity, refused with a `PrunusError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Lists the fields, with their defaults and sentences, where `help` shows them."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\nFields:\n{_listed(cls)}"

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise first_problem(error, type(self)) from None


def known(base: type[BaseModel], tag: str) -> dict[str, type[Any]]:
    """The concrete subclasses of `base` that have been defined so far, by the default of their field `tag`. One that inherits its name
    from another goes by none.

    Raises:
        PrunusError: two different classes have one name. A class that is defined again, as in a notebook, replaces itself.
    """
    found: dict[str, type[Any]] = {}
    for cls, name in _with_names(base, tag):
        if inspect.isabstract(cls):
            continue
        other = found.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            places = " and ".join(f"{one.__module__}.{one.__qualname__}" for one in (other, cls))
            raise PrunusError(tag, name, f"it is the name of both {places}; rename one")
        found[name] = cls
    return found


def _with_names(base: type[BaseModel], tag: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Subclasses with a name of their own, and that name."""
    waiting = [base]
    while waiting:
        cls = waiting.pop(0)
        waiting += cls.__subclasses__()
        field = cls.model_fields.get(tag)
        if field is not None and isinstance(field.default, str) and tag in inspect.get_annotations(cls):
            yield cls, field.default


def named(base: type[BaseModel], tag: str) -> Any:
    """The type of a field that holds any subclass of `base`, found by the value of its field `tag`.

    A subclass is known once its module is imported, whoever wrote it; packages are asked for theirs by the entry point of
    `prunus.extensions`. There is no list to add it to.
    """

    def find(value: object) -> object:
        if isinstance(value, type):
            raise PrunusError("", value.__name__, f"it is a class; give one of it, such as {value.__name__}()")
        if isinstance(value, str):
            raise PrunusError("", value, f"write it as a mapping that has {tag} and the settings")
        if not isinstance(value, Mapping):
            return value
        if tag not in value:
            raise PrunusError(tag, None, f"say which: one of {', '.join(known(base, tag))}")
        name = value[tag]
        if name not in (known(base, tag) if isinstance(name, str) else ()):
            load_installed()
        classes = known(base, tag)
        if not isinstance(name, str) or name not in classes:
            for cls in [cls for cls, own in _with_names(base, tag) if own == name]:
                lacking = ", ".join(sorted(cls.__abstractmethods__))
                raise PrunusError(tag, name, f"its class {cls.__qualname__} is not finished; write {lacking}")
            near = difflib.get_close_matches(str(name), classes, n=1)
            hint = f"did you mean {near[0]}? There are" if near else "take one of"
            raise PrunusError(
                tag, name, f"{hint} {', '.join(classes)}; one of your own is known once it is imported (--import)"
            )
        return classes[name].model_validate(dict(value))

    annotated, whole = cast(Any, Annotated), cast(Any, SerializeAsAny)  # mypy takes no variable for a type
    return annotated[whole[base], BeforeValidator(find)]


def places_in(value: object) -> list[str]:
    """What a new process imports to know the classes of some typed data, and of all data inside of it.

    Raises:
        PrunusError: one was defined where no other process can find it.
    """
    places = [place_of(type(part)) for part in _typed_in(value)]
    return list(dict.fromkeys(place for place in places if place is not None))


def refuse_nameless(given: BaseModel, read: BaseModel) -> None:
    """Refuses data that would come back from JSON as another class: one that inherits its name from another.

    Args:
        given: the data.
        read: the same, come back.

    Raises:
        PrunusError: see above.
    """
    for one, other in zip(_typed_in(given), _typed_in(read), strict=False):
        if type(one).__qualname__ != type(other).__qualname__:
            raise PrunusError(
                "class", type(one).__qualname__, f"it has no name of its own, so new processes would take {type(other).__qualname__} for "
                "it; give it one",
            )  # fmt: skip


def _typed_in(value: object) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _typed_in(part)


def _listed(cls: type[BaseModel]) -> str:
    lines = []
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        own_name = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        sentence = " ".join((field.description or ("Its name in recipes." if own_name else "")).split())
        lines.append(f"    {name} ({default}): {sentence}".rstrip(": "))
    return "\n".join(lines)


def read_typed(model: type[TypedT], data: object, source: str) -> TypedT:
    """Typed data from plain data of a file.

    Raises:
        PrunusError: a field is unknown, missing or wrong; it names the `source`, too.
    """
    try:
        return model.model_validate(data)
    except PrunusError as error:
        raise PrunusError(f"{source}: {error.field}", error.value, error.remedy) from None
    except ValidationError as error:
        raise first_problem(error, model, source) from None


def first_problem(error: ValidationError, model: type[BaseModel], source: str = "") -> PrunusError:
    """The first complaint of pydantic as a `PrunusError`; `source` names the file it came from."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    location = [part for part in problem["loc"] if isinstance(part, int) or not str(part).startswith("function-")]
    field = ".".join(str(part) for part in location)
    if isinstance(cause, PrunusError):
        nested = ".".join(filter(None, [field, cause.field]))
        return PrunusError(_in(source, nested), cause.value, cause.remedy)
    remedy = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        name = str(location[-1])
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(model.model_fields)}"
        remedy = f"{model.__name__} has no such field; {hint}"
    elif problem["type"] == "missing":
        remedy = "it is required; add it"
    return PrunusError(_in(source, field or model.__name__), problem.get("input"), remedy)


def _in(source: str, field: str) -> str:
    return f"{source}: {field}" if source else field
