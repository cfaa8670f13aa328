"""The one thing that networks of pixels can be asked for: a class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ddimctl.errors import UsageError
from ddimctl.model import Condition
from ddimctl.network import Embedded


def embedder(name: str, classes: int | None) -> Callable[[Condition], Embedded]:
    """What a condition becomes for a network of so many classes, None for one without."""

    def embed(condition: Condition) -> Embedded:
        label = condition.class_label
        if condition.prompt is not None or condition.negative is not None or condition.blend:
            raise UsageError(f"the model {name} takes no text", hint="leave the prompt away")
        if condition.guidance != 1:
            raise UsageError(f"the model {name} has nothing to guide it", hint="leave the guidance away")
        if label is None and classes is not None:
            hint = f"add --class with a number from 0 to {classes - 1}"
            raise UsageError(f"the model {name} is class-conditional", hint=hint)
        if label is not None and classes is None:
            raise UsageError(f"the model {name} has no classes", hint="leave --class away")
        if label is not None and classes is not None and not 0 <= label < classes:
            raise UsageError(f"the model {name} has no class {label}", hint=f"its classes are 0 to {classes - 1}")
        return {} if label is None else {"class_label": np.array([label])}

    return embed
