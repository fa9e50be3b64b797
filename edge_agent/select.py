"""Select: choose which of a picture's tokens travel, by a selector of `projector.codec.select`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_agent.plan import Plan
from projector.codec.encoder import Encoder
from protos.errors import ConfigError
from protos.points import OperatingPoint
from protos.state import KVState


def keep_tokens(
    state: KVState,
    encoder: Encoder,
    point: OperatingPoint,
    plan: Plan,
    fresh: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """The tokens that travel, `[tokens]` bool.

    Args:
        state: one picture's cache, RoPE removed.
        encoder: names the selector, unless the plan does.
        point: sets the token budget, unless the plan does.
        plan: selector, budget and threshold.
        fresh: for a text, the tokens that travel.

    Raises:
        ConfigError: the selector is unknown, or the plan selects tokens of a text.
    """
    selector = encoder.selecting(plan.selector)
    budget = plan.token_budget if plan.token_budget is not None else point.tokens or None
    if fresh is not None:
        if budget is not None or plan.token_threshold is not None:
            raise ConfigError("a text travels whole: no token_budget, no token_threshold")
        return fresh
    if budget is None and plan.token_threshold is None:
        return np.ones(state.positions.shape[0], dtype=np.bool_)
    return selector.keep(state, budget, plan.token_threshold)
