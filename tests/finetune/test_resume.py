"""An interrupted trial resumes to the same weights."""

import io
from pathlib import Path

import pytest
import torch

from raysep.config import AugmentConfig, FinetuneConfig, SplitConfig
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.finetune import resume
from raysep.finetune.training import train
from raysep.models.meta import read_meta
from raysep.storage.store import Storage
from tests.finetune.test_training import trial

CONFIG = FinetuneConfig(
    steps=6,
    evaluate_at=[0, 3, 6],
    batch_size=8,
    validation_fraction=0.2,
    schedule="cosine",
    warmup_steps=2,
    augment=AugmentConfig(rotation_degrees=20, horizontal_flip=True),
)


def saved(content: object) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink)
    return sink.getvalue()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 4])
def test_it_resumes_to_the_same_weights(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    source = ImageFolder(ImageFolder.Config(path=str(tree)))
    split = draw_split(source.records(), SplitConfig(unseen=["d", "e"]))
    uninterrupted, interrupted = Storage(str(tmp_path / "whole")), Storage(str(tmp_path / "broken"))
    expected = list(train(trial(), CONFIG, uninterrupted, split, source))
    assert resume.load(uninterrupted, trial()) is None

    monkeypatch.setattr(resume, "SAVE_INTERVAL_S", 0.0)
    steps: list[int] = []

    def stop(step: int) -> None:
        steps.append(step)
        # One step later, after the state of this step is saved.
        if step == after + 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        list(train(trial(), CONFIG, interrupted, split, source, on_step=stop))
    steps.clear()
    resumed = list(train(trial(), CONFIG, interrupted, split, source, on_step=steps.append))
    assert steps == list(range(after + 1, 7))
    # Earlier evaluations are yielded again: schedulers see the whole history.
    assert [(e.step, e.val_accuracy, e.seen_accuracy, e.loss) for e in resumed] == [
        (e.step, e.val_accuracy, e.seen_accuracy, e.loss) for e in expected
    ]
    hashes = [read_meta(store, f"{trial().directory}/step=6").sha256 for store in (uninterrupted, interrupted)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("content", [b"", saved({"step": 3}), b"PK\x03\x04 no", b"cposix\nsystem\n(S'true'\ntR."])
def test_an_invalid_state_is_none(tmp_path: Path, content: bytes) -> None:
    store = Storage(str(tmp_path))
    store.write_bytes(f"{trial().directory}/{resume.FILE}", content)
    assert resume.load(store, trial()) is None
