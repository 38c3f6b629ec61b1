"""Servers for development, the demo and the tests, and the files that deploy NotiPy; knows nothing of NotiPy itself."""
