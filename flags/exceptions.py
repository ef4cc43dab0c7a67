"""Everything `flags` raises. The docstring of a class is its default message."""


class FlagsError(Exception):
    """The rollout could not do what it was asked; see the subclass for what to do."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))


class UnknownSwitch(FlagsError, KeyError):
    """CONVERSATIONS["SWITCHES"] names a switch that does not exist: see flags.phases.Switch."""

    __str__ = Exception.__str__
