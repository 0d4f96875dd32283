"""A console that went away ends no run: `2>&1 | head -1`, a `tee` that was killed, a terminal that was closed."""

import contextlib
import os
import sys
from typing import Any


class _Lasting:
    """A text stream whose reader may go away: from then on what is written to it is dropped."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError | ValueError) -> None:
        """Points the stream, with what it still holds, and all that share its file, to nowhere."""
        if isinstance(error, UnicodeError):  # a name that this console cannot show, no dead console
            raise error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def outlive() -> None:
    """Lets this process go on without its console; what it logs goes to the files of its workdir all the same."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Lasting):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")  # a name of a file that the console cannot show
            setattr(sys, name, _Lasting(stream))
