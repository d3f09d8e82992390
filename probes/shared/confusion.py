"""How often images of one class were taken for another.

n images, k classes.
"""

import warnings

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import confusion_matrix


def counts_of(truth: Int[np.ndarray, " n"], answers: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "k k"]:
    """Images of each true class (row) by answer (column), counted by scikit-learn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a single class, whose matrix is right all the same
        return confusion_matrix(truth, answers, labels=np.arange(classes))


def shares_of(counts: Int[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """Percent of each true class (row) by answer (column); NaN where the class does not occur."""
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, 100 * counts / np.maximum(total, 1), np.nan)
