"""The sub-commands of `manage.py conversations`, a module for each family of them.

A module names what it offers in `SUBCOMMANDS`; the command lists the modules.
"""
