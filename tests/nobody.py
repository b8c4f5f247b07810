"""What a user without rights can do: `as_nobody`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

NOBODY = 65534


def as_nobody(act: Callable[[], bool]) -> bool:
    """What *act* gives in a child that has lost root's rights; False if it raised."""
    child = os.fork()
    if not child:
        done = False
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            done = act()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if done else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
