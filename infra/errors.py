"""The one error class whose message is meant for the user rather than for a developer."""


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it. `main.py` prints it without a
    traceback and exits with status 2; every other exception is a bug of ours and keeps its traceback.
    """
