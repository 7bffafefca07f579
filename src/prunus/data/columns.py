"""The fixed columns, to which every source of data is brought: their names, their types, and what is taken for them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import shown

WHERE = "where"
"""Column beside the fixed ones: file and row that a row comes from, for errors."""


class MisfitError(ValueError):
    """A value is none of its column; the text says why."""


@dataclass(frozen=True)
class Column:
    """A fixed column."""

    kind: str
    """Such as `text` or `list of image`."""
    holds: str
    """What it holds, in a sentence."""
    read: Callable[[Any, Path], Any]
    """(value, folder that relative paths start from) → the value as it is kept. Raises `MisfitError`."""


def as_image(value: Any, folder: Path) -> dict[str, Any]:
    """`bytes` of a file, or its absolute `path`."""
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is not None:
            if not isinstance(data, bytes | bytearray):
                raise MisfitError("its bytes are none; give those of an image file")
            return {"bytes": bytes(data), "path": path if isinstance(path, str) else None}
        value = path
    if isinstance(value, list | tuple) and value:
        raise MisfitError(
            "it is a list; several pictures of one row are a column called images, one picture is no list"
        )
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise MisfitError("it is no image; give the path or the bytes of a file")
    path = str(value)
    if "://" in path:
        raise MisfitError("it is an address; fetch the file, and give its path")
    if "\0" in path:
        raise MisfitError("it is no path of a file")
    if path.startswith("data:") or len(path) > LONGEST_PATH:
        raise MisfitError(
            "it is no path; a picture that is written as text, as in base64, is to be a file, or bytes in Parquet"
        )
    return {"bytes": None, "path": as_text(_place(path, folder), folder)}


LONGEST_PATH = 4096
"""Characters; no system has longer ones."""


def _place(path: str, folder: Path) -> str:
    """The absolute path of a file. `..` leads out of where a link points to, and `\\` is what Windows writes for `/`."""
    if "\\" in path and os.sep == "/" and not (folder / path).exists():
        path = path.replace("\\", "/")
    whole = folder / os.path.expanduser(path)
    return os.path.join(os.path.realpath(whole.parent), whole.name) if ".." in whole.parts else os.path.abspath(whole)


def as_images(value: Any, folder: Path) -> list[dict[str, Any]]:
    """Images of one row, in their order."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise MisfitError("it is no list of images; give at least one path")
    return [as_image(one, folder) for one in value]


def as_text(value: Any, folder: Path) -> str:
    """Text in Unicode, which may be empty."""
    if not isinstance(value, str):
        raise MisfitError(f"it is {_kind(value)}; give text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MisfitError("it holds half of a surrogate pair; write the file in UTF-8") from None
    return value


def as_words(value: Any, folder: Path) -> str:
    """Text with something in it."""
    text = as_text(value, folder)
    if not text.strip():
        raise MisfitError("it is empty; write it, or leave the row out")
    return text


def as_id(value: Any, folder: Path) -> str:
    """Text, or a whole number as text."""
    return as_words(str(value) if _is_whole(value) else value, folder)


def as_answers(value: Any, folder: Path) -> list[str]:
    """Answers, of which some may be empty, as people leave them; or one."""
    if isinstance(value, str) and "|" in value:
        raise MisfitError('nothing says whether it is one answer; write a list: ["a|b"] is one, ["a", "b"] are two')
    answers = [as_text(_number_as_text(one), folder) for one in _listed(value)]
    if not any(answer.strip() for answer in answers):
        raise MisfitError("it is empty; write an answer, or leave the row out")
    return answers


def as_captions(value: Any, folder: Path) -> list[str]:
    """Captions, each with something in it; or one."""
    captions = [as_words(one, folder) for one in _listed(value)]
    if not captions:
        raise MisfitError("it is empty; write a caption, or leave the row out")
    return captions


ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
IMAGE_PLACE = "<image>"
"""Where an image stands among the words of a chat."""


def as_messages(value: Any, folder: Path) -> list[dict[str, str]]:
    """Turns of a chat, each with `role` and `content`; also as LLaVA writes them (`from`, `value`), or with parts of content."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise MisfitError("it is no chat; give a list of messages, each with role and content")
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise MisfitError("a message is no mapping with role and content")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in ROLES:
            raise MisfitError(f"a message has the role {shown(role)}; take one of system, user, assistant")
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            content = "\n".join(_part(part) for part in content)
        messages.append({"role": ROLES[role], "content": as_words(content, folder)})
    if messages[-1]["role"] != "assistant":
        raise MisfitError("its last message is not the assistant's; there would be nothing to learn")
    return messages


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "image":
        return IMAGE_PLACE
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise MisfitError("a part of a message is neither a text nor an image")
    return text


def as_label(value: Any, folder: Path) -> int | bool | str | None:
    """A class by its number or its name, or a truth; None for the number that is none, by which pandas says that there is none."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return None if math.isnan(value) else int(value)
    if isinstance(value, str):
        return as_words(value, folder)
    raise MisfitError(f"it is {_kind(value)}; give the number or the name of a class, or true or false")


COLUMNS: dict[str, Column] = {
    "image": Column("image", "a picture: the path or the bytes of a file", as_image),
    "images": Column("list of image", "several pictures of one row, in their order", as_images),
    "question": Column("text", "what is asked about the picture", as_words),
    "question_id": Column("text", "the question's own number or name; no two are alike", as_id),
    "answers": Column("list of text", "one answer, or those of several people", as_answers),
    "captions": Column("list of text", "one caption, or several of the same picture", as_captions),
    "text": Column("text", "a text, or a statement about the pictures", as_text),
    "label": Column("number", "a class by its number or name, or true or false", as_label),
    "mask": Column("image", "a picture whose pixels are numbers of classes", as_image),
    "messages": Column("list of message", "a chat: messages with `role` and `content`, the assistant's last", as_messages),
}  # fmt: skip


@dataclass
class Labels:
    """Numbers of classes, as the labels of rows are met one after the other."""

    given: Sequence[str] | None = None
    """Names of the classes, where they are known beforehand; label i is that of the i-th."""
    names: list[str] = field(default_factory=list)
    """Those that were met, in that order."""
    kind: type | None = None
    """Of the labels: bool, int or str."""

    def number(self, label: int | bool | str) -> int | None:
        """The number of a label's class: a position in `order`, once all labels have been met; None for -1, which says that none is known.

        Raises:
            MisfitError: the class is none of those given; or other labels were of another kind.
        """
        if self.kind not in (None, type(label)):
            raise MisfitError("labels of other rows are of another kind; use numbers, names, or true and false for all")
        self.kind = type(label)
        if isinstance(label, str):
            return self._named(label)
        if label == -1:
            return None
        if label < 0 or (self.given is not None and label >= len(self.given)) or label >= MOST_CLASSES:
            raise MisfitError(
                f"there is no such class; classes have numbers from 0 to {len(self.given or range(MOST_CLASSES)) - 1}"
            )
        return int(label)

    def _named(self, label: str) -> int:
        known = self.names if self.given is None else self._places
        if label not in self._places:
            if self.given is not None:
                raise MisfitError(f"there is no such class; there are {shown(list(self.given))}")
            self._places[label] = len(known)
            self.names.append(label)
        return self._places[label]

    def __post_init__(self) -> None:
        self._places = {name: place for place, name in enumerate(self.given or ())}

    @property
    def order(self) -> list[str] | None:
        """Names of all classes, by number: as given, or sorted; None for plain numbers."""
        if self.given is not None:
            return list(self.given)
        return ["false", "true"] if self.kind is bool else sorted(self.names) if self.kind is str else None

    def final(self, numbers: Sequence[int | None]) -> list[int | None]:
        """What `number` gave, once all labels have been met and the classes are sorted."""
        if self.given is not None or self.kind is not str:
            return list(numbers)
        places = {name: place for place, name in enumerate(sorted(self.names))}
        return [None if number is None else places[self.names[number]] for number in numbers]


MOST_CLASSES = 1_000_000


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [value]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number_as_text(value: Any) -> Any:
    """A number as people write it; anything else as it is."""
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if _is_whole(value) else value


def _kind(value: Any) -> str:
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        bytes: "bytes",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), f"a {type(value).__name__}")
