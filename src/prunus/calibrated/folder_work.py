"""What a folder remembers while it is being narrowed: scores and fitted weights of finished blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from prunus.calibrated.state import Known
from prunus.checkpoint import Shards, Work, copy_beside_weights
from prunus.storage import write_bytes

JOURNAL, SCORES, FITTED = "prunus-narrowing.json", "prunus-scores.safetensors", "prunus-fitted"
WORTH, MEAN = "worth", "mean"
"""What the scores' file calls what it holds of units, and of matrices."""


class FolderWork(Work):
    """The output folder while it is being made: scores and fitted weights of finished blocks."""

    def __init__(self, folder: Path, request: str):
        super().__init__(folder, JOURNAL)
        self._request = request
        self.known = Known()
        self.blocks: dict[str, int] = {}
        """Fitted block → number of its file."""

    def begin(self, shards: Shards) -> None:
        """Takes up earlier work, or copies what lies beside the weights."""
        with self.understood():
            journal = self.read()
            if journal is not None and journal["copied"]:
                request, self.blocks = (
                    journal["request"],
                    {block: int(number) for block, number in journal["fitted"].items()},
                )
        if journal is not None and journal["copied"]:
            self.refuse_other(request, self._request)
            if (self.folder / SCORES).exists():
                of = {WORTH: self.known.worth, MEAN: self.known.means}
                for key, value in load_file(self.folder / SCORES).items():
                    kind, _, name = key.partition(" ")
                    of.get(kind, {})[name] = value
            return
        with self.writing(), self.whole_or_gone():
            self._note(copied=False)
            copy_beside_weights(shards, self.folder)
            (self.folder / FITTED).mkdir(exist_ok=True)
            self._note()

    def note_scores(self, known: Known) -> None:
        """Keeps what is known of the units of a block."""
        worth, means = (
            {name: value.cpu().contiguous() for name, value in of.items()} for of in (known.worth, known.means)
        )
        self.known.add(Known(worth, means))
        kinds = {WORTH: self.known.worth, MEAN: self.known.means}.items()
        with self.writing():
            write_bytes(
                self.folder / SCORES, save({f"{kind} {name}": x for kind, of in kinds for name, x in of.items()})
            )

    def note_fit(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the fitted parameters of a block."""
        number = len(self.blocks)
        with self.writing():
            write_bytes(self.file(number), save({name: tensor.contiguous() for name, tensor in tensors.items()}))
            self.blocks[block] = number
            self._note()

    def file(self, number: int) -> Path:
        """Where the fitted parameters of a block are."""
        return self.folder / FITTED / f"{number}.safetensors"

    def finished(self, output: Path) -> None:
        for number in self.blocks.values():
            self.file(number).unlink()
        (self.folder / FITTED).rmdir()
        (self.folder / SCORES).unlink(missing_ok=True)
        super().finished(output)

    def _note(self, copied: bool = True) -> None:
        self.write({"copied": copied, "request": self._request, "fitted": self.blocks})
