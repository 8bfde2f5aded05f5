"""Errors that are the user's to mend, and what the command line says of them."""

import errno


class UserError(ValueError):
    """Its message is one line: what is wrong, with the value, and what to do. A command prints that line and exits with
    code 2. Any other error is the system's (OSError), or a bug."""


def line_for_user(error: Exception) -> str | None:
    """What is wrong and what to do, if the user can do something about it; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text):
        return "out of memory; take a smaller recipe, or train on fewer clips a step: --set dynamics_fit.batch_size=2"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and "make room" not in text:
        return "the disk is full; make room and run the same command again, it goes on from what is saved"
    return text if isinstance(error, UserError | OSError) else None
