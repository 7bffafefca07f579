"""Pictures that two data sets share, told by their bytes, whatever their files are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from prunus.data.reading import image_state
from prunus.data.store import Kept
from prunus.storage import write_text


def shared_pictures(one: Kept, other: Kept) -> int:
    """How many different pictures both have. Only those are read whose number of bytes occurs in both, and what was found is kept in the
    cache.
    """
    states = sorted(json.dumps(kept.state) for kept in (one, other))
    file = one.folder.parent / f"shared-{sha256(json.dumps(states).encode()).hexdigest()[:16]}.json"
    if file.exists():
        return int(json.loads(file.read_bytes()))
    common = {size for size, _ in _pictures(one)} & {size for size, _ in _pictures(other)}
    found = [{_digest(held) for size, held in _pictures(kept) if size in common} for kept in (one, other)]
    shared = len(found[0] & found[1])
    write_text(file, str(shared))
    return shared


def _pictures(kept: Kept) -> Iterator[tuple[int, Any]]:
    """Bytes and place of every picture that is still there: a path, of which each is met once, or a scalar of Arrow."""
    import pyarrow.compute

    met: set[str] = set()
    for _, _, images in kept.images(("image", "images")):
        sizes = pyarrow.compute.binary_length(images.field("bytes")).to_pylist()
        for place, (size, path) in enumerate(zip(sizes, images.field("path").to_pylist(), strict=True)):
            if size is not None:
                yield size, images.field("bytes")[place]
            elif path is not None and path not in met and (state := image_state(path)) is not None:
                met.add(path)
                yield state[0], path


def _digest(held: Any) -> bytes:
    data = Path(held).read_bytes() if isinstance(held, str) else held.as_buffer()
    return blake2b(data, digest_size=16).digest()
