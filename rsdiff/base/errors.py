"""The one exception that means: the input is wrong, not the program."""


class BadInput(Exception):
    """Raised with a single line that names what is wrong, where, and what to do.

    Programs turn it into that line on stderr and exit code 2 (`rsdiff.programs.console.run`).
    """


def one_line(error: Exception) -> str:
    """What `error` says, without its line breaks."""
    return ' '.join(str(error).split())
