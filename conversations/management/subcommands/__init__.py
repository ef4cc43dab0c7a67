"""The sub-commands of `manage.py conversations`, a module for each family of them.

A module lists its sub-commands in `SUBCOMMANDS`; the command lists the modules.
"""
