"""The two exceptions that are no bugs: a mistake of the user's, and a request to stop."""

import errno

# What the system answers where a disk is full, read-only, broken or not ours: for the user to mend.
DISK_ERRORS = {getattr(errno, n) for n in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")}

# What it answers where a file stands in a folder's place, or a folder in a file's.
IN_THE_WAY = (NotADirectoryError, IsADirectoryError, FileExistsError)


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it. `main.py` prints it without a
    traceback and exits with status 2; every exception but this and Stopped is a bug of ours and keeps its traceback.

    Attributes:
      everywhere: whether every process of the run raises it, or one for the same reason, at the same point.
    """

    everywhere = False


class Stopped(Exception):
    """The run was asked to stop by a signal and did so cleanly: all that it had done is saved.

    `main.py` exits with status 128 + the signal's number, as a shell tells it: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.status = 128 + signal_number
