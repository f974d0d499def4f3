"""scikit-learn's scans of handwritten digits: small, real, and installed with the library."""

from __future__ import annotations

import numpy as np
import torch

from bezoar.data.dataset import Dataset, Samples
from bezoar.seeding import numpy_generator

#: Fixed: the split is part of the data set, not of an experiment.
_SPLIT_SEED = 0
_TEST_SHARE = 0.2


def load_digits() -> Dataset:
    """1,797 grey 8x8 scans with values 0..16, 80/20 stratified: the same split for everyone."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    rng = numpy_generator(_SPLIT_SEED, "digits split")
    in_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        mine = rng.permutation(np.flatnonzero(labels == digit))
        in_test[mine[: round(_TEST_SHARE * len(mine))]] = True
    inputs = torch.from_numpy(images.astype(np.uint8).reshape(-1, 1, 8, 8))
    targets = torch.from_numpy(labels.astype(np.int64))
    train, test = (
        Samples(inputs[torch.from_numpy(rows)], targets[torch.from_numpy(rows)]) for rows in (~in_test, in_test)
    )
    return Dataset("digits", train, test, tuple("0123456789"), mean=(0.3056,), std=(0.3762,), scale=16.0)
