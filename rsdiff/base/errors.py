"""The exception for invalid input, as opposed to a bug in the program."""


class BadInput(Exception):
    """Raised with a single line that names what is wrong, where, and what to do.

    Programs print that line to stderr and exit with code 2 (`rsdiff.programs.console.run`).
    """


def one_line(error: Exception) -> str:
    """The message of `error` without line breaks."""
    return ' '.join(str(error).split())
