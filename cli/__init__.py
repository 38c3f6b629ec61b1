"""The operator's `notipy` command."""
