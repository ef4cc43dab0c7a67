"""The coroutine twins: each wraps one whole synchronous function, and so one transaction.

A coroutine that is cancelled may still commit: repeat it with the same state or keys. After each,
outside a transaction, its connection returns to the pool.
"""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from asgiref.sync import sync_to_async

from conversations.routing.transactions import give_back
from conversations.state import AgentState

P = ParamSpec("P")
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # mypy gives the twin of a generic function this variable, so it has the function's default.
    T = TypeVar("T", default=AgentState)
else:
    from typing import TypeVar

    T = TypeVar("T")


def coroutine_of(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the coroutine that runs the whole function in a thread."""

    @wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        finally:
            give_back()

    return sync_to_async(whole)
