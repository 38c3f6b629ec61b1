"""One module for each kind of provider, with a `SUBJECT` (or several, as `SUBJECTS`)."""

import importlib
import os
import pkgutil

from tests.conformance.subject import Subject

__path__ += filter(None, os.environ.get("CONFORMANCE_SUBJECTS", "").split(os.pathsep))
"""Here, and in the folders of other packages that the variable names."""


def subjects() -> list[Subject]:
    """All of them."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [subject for module in modules for subject in getattr(module, "SUBJECTS", None) or (module.SUBJECT,)]
