"""Corrupt a random picture, and print the SHA-256 of its pixels.

python -m tests.support.programs.glass_blur
"""

import hashlib

import numpy as np

from pretrain.sample import corruptions


def digest() -> str:
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return hashlib.sha256(corruptions.corrupt(picture, "glass_blur", 3, (0, 0)).tobytes()).hexdigest()


if __name__ == "__main__":
    print(digest())
