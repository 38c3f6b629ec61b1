"""MongoDB: documents, indexes, repositories, group commit."""

import sys
from importlib.util import find_spec

if find_spec("OpenSSL") is None:
    # PyMongo looks for PyOpenSSL with an import that loads all of cryptography first (9 MiB a process), and does
    # without it then. Told at once that it is not there, it comes to the same without the memory.
    sys.modules.setdefault("pymongo.pyopenssl_context", None)  # type: ignore[arg-type]
