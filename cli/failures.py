"""How a command ends when it does not succeed: in words for a person, and an exit code for a script.

0 done · 1 the thing asked for failed · 2 wrong usage or bad input · 130 Ctrl-C.
"""

import sys
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class CommandFailed(Exception):
    """What was asked for could not be done; `hint` says what to do next."""

    code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadInput(CommandFailed):
    """What was given cannot be used; the message says where."""

    code = 2


class CommandGroup(TyperGroup):
    """A group of commands whose expected failures are told, not traced."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except CommandFailed as failure:
            tell(failure)
            raise typer.Exit(failure.code) from None
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # a word of the library that reads the options
            raise

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, its help in paragraphs that fit any terminal."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:
            command.help = unwrapped(command.help)
        return command


def unwrapped(text: str) -> str:
    """The text with each paragraph in one line, for the terminal to wrap; what is indented stays as it is."""
    return "\n\n".join(block if block.startswith(" ") else " ".join(block.splitlines()) for block in text.split("\n\n"))


def tell(failure: CommandFailed) -> None:
    """Write a failure, and what to do next, to standard error."""
    from rich.text import Text

    from cli.output import hanging, plain, stderr

    screen = stderr()
    first, *more = plain(str(failure)).splitlines() or [""]
    screen.print(Text.assemble(("Error: ", "bold red"), first))
    for line in more:
        screen.print(hanging(line, screen))
    if failure.hint:
        screen.print(Text.assemble(("What to do: ", "bold"), plain(failure.hint)))
    sys.stderr.flush()
