"""What the library says to a person whose input cannot be used."""


class InputError(ValueError):
    """The user's data, path or setting is unusable; the message says what was wrong, with the value, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
