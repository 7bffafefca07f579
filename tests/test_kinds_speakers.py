"""How models that speak about images take them: tiny random models of every family, by processors as they are published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from prunus import PrunusError
from prunus.checkpoint import load_model
from prunus.tasks.kinds import Generative, Speaker, kind_of
from tests.speakers import SPEAKERS, save

IMAGES = [[Image.new("RGB", (20, 16), (200, 10, 10))], [Image.new("RGB", (16, 25), (0, 10, 200))]]
QUESTIONS = ["what?", "what is this?"]
ANSWERS = [["red"], ["black", "blue", "blue"]]
CANDIDATES = ["red", "blue", "black"]
FEW = ["blip2_t5", "blip2_opt", "qwen2_vl", "paligemma", "blip_answers", "blip_all_answers", "blip_captions"]
"""One of each way that scores are computed."""
GENERATIVE = [name for name in SPEAKERS if not name.startswith(("blip_", "vilt"))]

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Of a family's tiny model; made once."""
    place = tmp_path_factory.mktemp("speakers")

    def made(name: str) -> Path:
        if name == "smolvlm":
            pytest.importorskip("num2words")
        return place / name if (place / name).exists() else save(name, place / name)

    return made


def prompts(kind: Speaker) -> list[str]:
    return [kind.prompt.format(question=question) for question in QUESTIONS]


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_row_does_not_depend_on_the_others(name: str, folder: Folder) -> None:
    kind, model = kind_of(Speaker, str(folder(name))), load_model(folder(name)).eval()
    asked = prompts(kind)
    together = kind.generate(model, IMAGES, asked, 4)
    assert together == [kind.generate(model, [some], [one], 4)[0] for some, one in zip(IMAGES, asked, strict=True)]
    scores = kind.score(model, IMAGES, asked, CANDIDATES, 9)
    assert scores.shape == (2, 3)
    alone = torch.cat(
        [kind.score(model, [some], [one], CANDIDATES, 9) for some, one in zip(IMAGES, asked, strict=True)]
    )
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_scores_are_the_losses_of_the_answers(name: str, folder: Folder) -> None:
    """One by one, the loss of a batch is its mean over tokens; of `BlipForVqa` it is the sum."""
    kind, model = kind_of(Speaker, str(folder(name))), load_model(folder(name)).eval()
    for some, one in zip(IMAGES, prompts(kind), strict=True):
        scores = kind.score(model, [some], [one], CANDIDATES, 9)[0]
        for score, candidate in zip(scores, CANDIDATES, strict=True):
            with torch.no_grad():
                found = kind.predict(model, kind.batch([some], [one], [[candidate]]))
            times = 1 if name == "blip_all_answers" else int(found.counted.sum())
            assert float(found.loss) * times == pytest.approx(-float(score), rel=1e-4)


@pytest.mark.parametrize("name", [*FEW, "vilt"])
def test_ranking_can_look_at_the_likeliest_beginnings_only(name: str, folder: Folder) -> None:
    kind, model = kind_of(Speaker, str(folder(name))), load_model(folder(name)).eval()
    every = kind.score(model, IMAGES, prompts(kind), CANDIDATES, 9)
    first = kind.score(model, IMAGES, prompts(kind), CANDIDATES, 1)
    looked_at = first.isfinite()
    assert looked_at.any(1).all()
    assert name == "vilt" or (looked_at.sum(1) == 1).all()
    torch.testing.assert_close(first[looked_at], every[looked_at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SPEAKERS if name != "vilt"])
def test_a_batch_can_be_learnt_from(name: str, folder: Folder) -> None:
    """Labels are the answers and nothing else; a few steps on them make them likelier than others."""
    kind, model = kind_of(Speaker, str(folder(name))), load_model(folder(name)).train()
    batch = kind.batch(IMAGES, prompts(kind), ANSWERS)
    learnt = [
        kind.processor.tokenizer.decode(row[row != -100], skip_special_tokens=True).strip() for row in batch["labels"]
    ]
    assert learnt == (["red", "blue", "black"] if name == "blip_all_answers" else ["red", "blue"])
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        loss = kind.predict(model, batch).loss
        loss.backward()
        optimizer.step()
    scores = kind.score(model.eval(), IMAGES, prompts(kind), ["red", "blue", "tin"], 9)
    assert (scores.argmin(1) == 2).all()


@pytest.mark.parametrize("name", SPEAKERS)
def test_the_processor_goes_along(name: str, folder: Folder, tmp_path: Path) -> None:
    kind = kind_of(Speaker, str(folder(name)))
    kind.save(tmp_path)
    shutil.copyfile(folder(name) / "config.json", tmp_path / "config.json")
    assert not list(tmp_path.glob("*.safetensors"))
    before, after = (each.batch(IMAGES, prompts(kind), ANSWERS) for each in (kind, kind_of(Speaker, str(tmp_path))))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["blip_answers", "blip_captions", "vilt"])
def test_texts_longer_than_the_models_positions_are_cut(name: str, folder: Folder) -> None:
    kind, model = kind_of(Speaker, str(folder(name))), load_model(folder(name)).eval()
    batch = kind.batch(IMAGES, ["why? " * 200, "why?"], [["because " * 100], ["so"]])
    assert batch["input_ids"].shape == (2, 200)
    with torch.no_grad():
        assert kind.predict(model, batch).loss.isfinite()


def test_vilt_learns_how_far_answers_are_right(folder: Folder) -> None:
    kind = kind_of(Speaker, str(folder("vilt")))
    labels = kind.batch(IMAGES, QUESTIONS, [["Red"], ["blue"] * 2 + ["the black"] * 7 + ["grey"]])["labels"]
    torch.testing.assert_close(labels, torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0, 0.6, 1.0, 0, 0]]))
    scores = kind.score(load_model(folder("vilt")).eval(), IMAGES, QUESTIONS, ["grey", "red"], 9)
    assert scores[:, 0].isinf().all()
    assert scores[:, 1].isfinite().all()


def test_vilt_takes_pictures_that_its_processor_would_leave_nothing_of(folder: Folder) -> None:
    kind = kind_of(Speaker, str(folder("vilt")))
    thin = [[Image.new("RGB", size)] for size in ((500, 1), (1, 2000), (16, 16))]
    pixels = kind.batch(thin, ["what?"] * 3)["pixel_values"]
    assert min(pixels.shape[-2:]) >= 4


CHAT = [
    {"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, red."},
]  # fmt: skip


@pytest.mark.parametrize("name", GENERATIVE)
def test_of_a_chat_the_answers_are_learnt(name: str, folder: Folder) -> None:
    kind = kind_of(Generative, str(folder(name)))
    batch = kind.chats(IMAGES, [CHAT, CHAT[:2]])
    said = [kind.tokenizer.decode(row[row != -100], skip_special_tokens=True).split() for row in batch["labels"]]
    every = ["Red.Yes,red.", "Red."]
    if (
        kind.encodes or name == "paligemma"
    ):  # a row for every answer: their prompts are read otherwise than what follows
        every = ["Red.", "Yes,red.", "Red."]
    assert ["".join(words) for words in said] == every
    read = kind.tokenizer.decode(batch["input_ids"][len(every) - 2])
    assert [read.count(message["content"]) for message in CHAT[:3]] == [1, 1, 1]
    with torch.no_grad():
        assert kind.predict(load_model(folder(name)), batch).loss.isfinite()


THINKING = ("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think></think>{% endif %}")
FORGETFUL = (
    "{{ c['text'] }}",
    "{{ c['text'] if loop.last and (m['role'] == 'user' or m is sameas messages[-1]) else '…' }}",
)
LOUD = ("{{ c['text'] }}", "{{ c['text'].upper() }}")


@pytest.mark.parametrize(
    ("changes", "learnt"),
    [([THINKING], "Red.Yes,red."), ([FORGETFUL], "Yes,red."), ([LOUD], "RED.YES,RED."), ([THINKING, LOUD], None)],
    ids=["thinks", "forgets", "shouts", "rewrites"],
)
def test_templates_that_write_answers_otherwise(
    changes: list[tuple[str, str]], learnt: str | None, folder: Folder, tmp_path: Path
) -> None:
    """What generation begins with may not stand in a whole chat, and earlier answers may be left out."""
    shutil.copytree(folder("qwen2_vl"), tmp_path / "qwen")
    template = tmp_path / "qwen" / "chat_template.jinja"
    text = template.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    template.write_text(text)
    kind = kind_of(Generative, str(tmp_path / "qwen"))
    if learnt is None:
        with pytest.raises(PrunusError, match="rewrites answers"):
            kind.chats(IMAGES[:1], [CHAT])
        return
    labels = kind.chats(IMAGES[:1], [CHAT])["labels"][0]
    assert "".join(kind.tokenizer.decode(labels[labels != -100], skip_special_tokens=True).split()) == learnt


@pytest.mark.parametrize("name", [name for name in GENERATIVE if "blip" not in name and name != "paligemma"])
def test_a_chat_may_have_no_image(name: str, folder: Folder) -> None:
    kind, model = kind_of(Generative, str(folder(name))), load_model(folder(name)).eval()
    batch = kind.chats([[], []], [CHAT, CHAT[:2]])
    assert "pixel_values" not in batch
    with torch.no_grad():
        assert kind.predict(model, batch).loss.isfinite()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "smolvlm", "gemma3"])
def test_chats_with_and_without_images_share_a_batch(name: str, folder: Folder) -> None:
    kind, model = kind_of(Generative, str(folder(name))), load_model(folder(name)).eval()
    mixed = [IMAGES[0], [], IMAGES[1]]
    losses, counts = [], []
    with torch.no_grad():
        together = kind.predict(model, kind.chats(mixed, [CHAT, CHAT, CHAT[:2]]))
        for some, chat in zip(mixed, (CHAT, CHAT, CHAT[:2]), strict=True):
            one = kind.predict(model, kind.chats([some], [chat]))
            counts.append(int(one.counted.sum()))
            losses.append(float(one.loss) * counts[-1])
    assert float(together.loss) == pytest.approx(sum(losses) / sum(counts), rel=1e-4)


def test_a_template_without_a_place_for_images_is_refused(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder("llava"), tmp_path / "llava")
    template = tmp_path / "llava" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<image>\n", ""))
    with pytest.raises(PrunusError, match="leaves 0 places for 1 images"):
        kind_of(Speaker, str(tmp_path / "llava")).batch(IMAGES, QUESTIONS)


def test_what_has_nothing_to_learn_is_refused(folder: Folder) -> None:
    kind = kind_of(Generative, str(folder("llava")))
    with pytest.raises(PrunusError, match="give an answer of the assistant's"):
        kind.chats(IMAGES[:1], [CHAT[:1]])


def test_a_folder_without_a_processor_is_refused(folder: Folder, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder("llava") / name, tmp_path / name)
    with pytest.raises(PrunusError, match="processor"):
        kind_of(Speaker, str(tmp_path)).check()


def test_a_processor_that_does_not_know_the_queries_is_told(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder("blip2_opt"), tmp_path / "old")
    (tmp_path / "old" / "processor_config.json").write_text('{"processor_class": "Blip2Processor"}')
    before, after = (
        kind_of(Speaker, str(one)).batch(IMAGES, QUESTIONS) for one in (folder("blip2_opt"), tmp_path / "old")
    )
    assert torch.equal(before["input_ids"], after["input_ids"])


def test_what_is_there_for_videos_is_passed_over_where_torchvision_is_missing(folder: Folder, tmp_path: Path) -> None:
    """As newer folders are published; the file goes along with the model all the same."""
    shutil.copytree(folder("qwen2_vl"), tmp_path / "newer")
    (tmp_path / "newer" / "video_preprocessor_config.json").write_text(
        '{"video_processor_type": "Qwen2VLVideoProcessor"}'
    )
    before, after = (kind_of(Speaker, str(one)) for one in (folder("qwen2_vl"), tmp_path / "newer"))
    assert torch.equal(*(kind.batch(IMAGES, QUESTIONS)["pixel_values"] for kind in (before, after)))
    (tmp_path / "saved").mkdir()
    after.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "video_preprocessor_config.json").exists()


def test_a_model_that_does_not_speak_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    with pytest.raises(PrunusError, match="ViTForImageClassification"):
        kind_of(Speaker, str(tmp_path))
