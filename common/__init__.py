"""What scripts and commands share. Importing it makes of a Ctrl-C during imports one line."""

import sys
from typing import Any


def _show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show
