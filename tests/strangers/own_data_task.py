"""A task of one's own over a user's data: which caption is an image's. Known to prunus once it is imported: `--import own_data_task.py`."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from prunus.tasks import DataTask, Metric
from prunus.tasks.kinds import Speaker


class OwnCaption(DataTask):
    """Whether a model finds an image's own caption likelier than that of the next image."""

    name: Literal["own_caption"] = "own_caption"
    prompt: str = "Describe it:"

    metrics: ClassVar = {"accuracy": Metric()}
    needs: ClassVar = ("image", "captions")
    kinds: ClassVar = Speaker

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images = [self.images(row) for row in items]
        batch: dict[str, Any] = self.kind.batch(
            images, [self.prompt] * len(items), [row["captions"][:1] for row in items]
        )
        return batch

    def read_off(self, model: Any, rows: Sequence[dict[str, Any]]) -> Sequence[bool]:
        candidates = [row["captions"][0] for row in rows]
        scores = self.kind.score(
            model, [self.images(row) for row in rows], [self.prompt] * len(rows), candidates, len(rows)
        )
        own, others = scores.diagonal(), scores.roll(-1, 1).diagonal()
        return (own > others).tolist()  # type: ignore[no-any-return]

    def figures(self, found: Sequence[bool]) -> dict[str, float]:
        return {"accuracy": sum(found) / len(found)}
