"""What scripts and commands share. Importing it makes of a Ctrl-C during imports one line."""

import sys
from typing import Any

_show = sys.excepthook


def _show_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        _show(kind, error, trace)


sys.excepthook = _show_line
