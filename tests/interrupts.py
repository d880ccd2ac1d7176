"""Ctrl-C at a chosen moment of a call."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType


def is_interrupted_at(moment: int, call: Callable[[], object]) -> bool:
    """Raise KeyboardInterrupt in this thread at one moment of `call`. Return False if the call ends before it.

    Moments are the starts of Python functions and the ends of C functions, where Python runs the handlers of signals.
    """
    moments = itertools.count()
    is_raised = False

    def profile(_frame: FrameType, event: str, _value: object) -> None:
        nonlocal is_raised
        if event in {"call", "c_return"} and next(moments) == moment:
            is_raised = True
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:  # not contextlib.suppress: its __exit__ is a function, and a moment
        pass
    finally:
        sys.setprofile(None)
    return is_raised
