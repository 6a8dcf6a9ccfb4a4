"""Flags and `main` of every command, above all other rooms; only scripts and entry points import it.

A module defines its flags when it is imported, and several have some of the same names: import one in a process.
"""
