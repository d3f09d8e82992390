"""Values from frozen features by scikit-learn's ridge regression: what logistic regression is for classes.

n and m images, d width.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import Ridge

from probes.shared import metrics
from probes.shared.metrics import Scores
from probes.shared.subject import Parts


def measure(
    bank: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"], parts: Parts, strengths: Sequence[float]
) -> dict[float, Scores]:
    """R2 and mean absolute error by strength of the L2 penalty (scikit-learn's alpha), with an intercept."""
    known, asked = parts.train.targets, parts.val.targets
    assert known is not None and asked is not None
    found = {}
    for strength in sorted(strengths):
        fitted = Ridge(alpha=strength).fit(bank.astype(np.float64), known)
        found[strength] = metrics.of_values(fitted.predict(queries.astype(np.float64)), asked)
    return found
