"""Builds g1jax/envs/data/digits.npz from scikit-learn's copy of the UCI handwritten digits.

Needs scikit-learn, which g1jax itself does not:  pip install scikit-learn && python scripts/make_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "g1jax" / "envs" / "data" / "digits.npz"


def balanced_digits() -> np.ndarray:
    """uint8[10, N, 8, 8], ink 0..16: the first N different images of each digit, in file order, N as large as fits."""
    digits = load_digits()
    ink = digits.images.astype(np.uint8)
    _, first_seen = np.unique(ink, axis=0, return_index=True)
    kept = np.sort(first_seen)
    by_class = [ink[kept[digits.target[kept] == label]] for label in range(10)]
    smallest = min(len(images) for images in by_class)
    return np.stack([images[:smallest] for images in by_class])


def main() -> None:
    images = balanced_digits()
    # NumPy dates every member of an .npz 1980-01-01, so the bytes depend only on the images (and on zlib).
    np.savez_compressed(TARGET, images=images)
    print(f"{TARGET}: {images.shape}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
