"""A claim is won by the token that it was made with, so no two processes may make the same."""

import os

from domain.token import unique_token


def test_no_token_is_made_twice() -> None:
    assert len({unique_token() for _ in range(1000)}) == 1000


def test_a_forked_process_makes_its_own() -> None:
    before = unique_token()
    read, write = os.pipe()
    if (child := os.fork()) == 0:  # it does nothing else: what it shares with this process it must not touch
        os.write(write, unique_token().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    forked = os.read(read, 100).decode()
    os.close(read)
    assert forked.partition("-")[0] not in {before.partition("-")[0], ""}
    assert unique_token().partition("-")[0] == before.partition("-")[0]
