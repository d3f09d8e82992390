"""The k-NN curve: each process computes a share, and decodes no more of an image than its view needs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.engine import distributed
from pretrain.evaluate import knn
from pretrain.evaluate.online_knn import OnlineKnn, readable
from pretrain.images.source import InMemory
from tests.support.networks import student_and_teacher


def pictures(count: int) -> InMemory:
    generator = np.random.default_rng(0)
    return InMemory("pictures", generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def jpeg(side: int) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(content, "JPEG")
    return content.getvalue()


def test_shares_of_two_processes_are_the_whole_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 46c01a2 one process computed all while the others waited."""
    backbone, images = student_and_teacher()[1].backbone, pictures(5)
    curve = OnlineKnn(images, images, 32)
    alone = curve._features(backbone, images)
    assert alone.shape == (5, backbone.shape.embed_dim)
    shares: dict[int, list] = {}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "gathered", lambda values, rank=rank: shares.setdefault(rank, values))
        curve._features(backbone, images)
    assert [shares[rank][0][0].tolist() for rank in (0, 1)] == [[0, 2, 4], [1, 3]]
    monkeypatch.setattr(distributed, "gathered", lambda values: shares[0] + shares[1])
    torch.testing.assert_close(curve._features(backbone, images), alone)


def test_large_jpegs_are_decoded_small_and_others_whole() -> None:
    """46c01a2 decoded 3,000 photographs whole."""
    images = InMemory("photographs", [jpeg(640), jpeg(100), np.zeros((200, 200, 3), dtype=np.uint8)])
    assert [knn.read(images, number, 64).shape[0] for number in range(3)] == [80, 100, 200]
    assert knn.read(images, 0).shape[0] == 640


def test_what_cannot_be_decoded_is_left_out() -> None:
    images = InMemory("photographs", [jpeg(64), jpeg(64)[:200], jpeg(32)])
    assert len(readable(images)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same_features(workers: int) -> None:
    backbone, images = student_and_teacher()[1].backbone, pictures(5)
    found = knn.features(backbone.eval(), images, resize=32, crop=32, batch_size=2, workers=workers, reduced=True)
    whole = knn.features(backbone.eval(), images, resize=32, crop=32)
    torch.testing.assert_close(found, whole)
