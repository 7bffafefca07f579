"""A training that had ended, or died after its last checkpoint, is not trained any further when it runs again."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch.utils.data import TensorDataset

from prunus import Training
from prunus.training.finetune import finetune
from tests.families import build


def test_a_training_resumed_after_its_last_step_ends_with_the_same_bits(tmp_path) -> None:
    """Six steps of an epoch of seven: the Trainer by itself would take the seventh."""
    ids = torch.randint(10, 40, (13, 7), generator=torch.Generator().manual_seed(0))
    training = Training(steps=6, batch_size=2, learning_rate=1e-2, bf16=False, save_every=3)
    states, logs, folders = [], [], []
    for _ in range(3):
        model = build("llama", 4).model
        logs.append(
            finetune(
                model, training, tmp_path, TensorDataset(ids), lambda rows: {"input_ids": torch.stack([row[0] for row in rows])},
                lambda model, batch: model(**batch, labels=batch["input_ids"]).loss,
            )
        )  # fmt: skip
        states.append(model.state_dict())
        folders.append(sorted(path.name for path in tmp_path.iterdir()))
    assert folders == [["checkpoint-3", "checkpoint-6", "training.json"]] * 3
    assert [row["step"] for log in logs for row in log if "loss" in row] == [5, 5, 5]
    assert all(torch.equal(tensor, state[key]) for state in states[1:] for key, tensor in states[0].items())


def test_a_model_whose_files_have_other_names_for_its_weights_is_resumed(tmp_path) -> None:
    """ViT: the Trainer by itself would find none of them in its checkpoint, and go on from where the training began."""
    training = Training(steps=4, batch_size=2, learning_rate=1e-2, bf16=False, save_every=2)
    states = []
    for _ in range(2):
        built = build("vit", 4)
        states.append(built.model.state_dict())
        images = TensorDataset(
            torch.randn((8, *built.inputs["pixel_values"].shape[1:]), generator=torch.Generator().manual_seed(0))
        )
        finetune(
            built.model, training, tmp_path, images, lambda rows: {"pixel_values": torch.stack([row[0] for row in rows])},
            lambda model, batch: model(**batch).logits.square().mean(),
        )  # fmt: skip
        (tmp_path / "checkpoint-4" / "complete").unlink()
    name = "classifier.weight"
    assert not torch.equal(states[0][name], build("vit", 4).model.state_dict()[name])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_importing_prunus_leaves_the_trainer_alone() -> None:
    """It brings peft and quantisers with it where they are installed, and costs as much as torch itself."""
    code = "import sys, prunus; sys.exit('transformers.trainer_callback' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
