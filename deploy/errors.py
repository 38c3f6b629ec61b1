"""What can go wrong with embedded servers; every message says what to do next."""


class EmbeddedError(Exception):
    """An embedded server cannot be had; the message is meant for a person."""


class CannotInstall(EmbeddedError):
    """A server's program is missing and cannot be installed from here."""


class StartFailed(EmbeddedError):
    """A server ended, or did not answer in time, while starting; the message ends with the tail of its log."""


class PortTaken(StartFailed):
    """A server ended because another process listens on one of its ports: with other ports it may start."""


class DirectoryInUse(EmbeddedError):
    """Another run holds the kept data of this directory."""
