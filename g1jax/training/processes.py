"""What several processes of one run agree on."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def any_process(is_so: bool) -> bool:
    """Whether it is so in any process. Every process calls it."""
    if jax.process_count() == 1:
        return is_so
    return bool(np.any(multihost_utils.process_allgather(np.array([is_so]))))
