"""Functions that torch's compiler calls but does not look into."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """Return a function that `torch.compile` calls as it is, in a break of its graph.

    Otherwise Dynamo would trace into it and insert its arrays, which can be written to, where
    a ground space keeps what the kernels read. Costs 0.3 us.
    """

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        compiler = getattr(sys.modules.get("torch"), "compiler", None)
        if compiler is not None and compiler.is_compiling():
            return compiler.disable(function)(*args, **keywords)
        return function(*args, **keywords)

    return cast(Function, call)
