"""Flags and `main` of every command: the top layer of the package. Only scripts and entry points import it.

Each module defines its flags on import, and some modules share flag names: import only one of them per process.
"""
