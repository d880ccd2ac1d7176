"""Questions to the user on a terminal: the questions go to stderr, the replies are read from stdin."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from comfy_client.cli.screen import Screen
from comfy_client.cli.terminal import console_for
from comfy_core.errors import ComfyClientError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_T = TypeVar("_T")


class Declined(ComfyClientError):  # noqa: N818 - an outcome
    """The user declined the confirmation, or closed stdin."""


class Questions:
    """Asks the user. Every method raises Declined with the message `if_declined` when stdin is closed (Ctrl-D)."""

    def __init__(self, screen: Screen, if_declined: str) -> None:
        self._screen = screen
        self._if_declined = if_declined

    @staticmethod
    def are_possible(screen: Screen) -> bool:
        """Return whether there is a user who can reply: stdin and stderr are a terminal."""
        return sys.stdin.isatty() and screen.err.isatty()

    def text(self, question: str, default: str = "") -> str:
        """Return a line of text. It is asked again while it is empty and there is no default."""
        from rich.prompt import Prompt  # noqa: PLC0415 - only needed for questions

        ask = functools.partial(Prompt.ask, self._text(question), console=self._console)
        return self._required(lambda: ask(default=default) if default else ask())

    def secret(self, question: str) -> str:
        """Return a line that the terminal does not show. It is asked again while it is empty."""
        from rich.prompt import Prompt  # noqa: PLC0415 - as above

        return self._required(lambda: Prompt.ask(self._text(question), console=self._console, password=True))

    def choice(self, question: str, options: Sequence[str]) -> int:
        """Return the index of an option. The options are listed with numbers from 1, and the first is the default."""
        from rich.prompt import IntPrompt  # noqa: PLC0415 - as above

        self._screen.say(question)
        for number, option in enumerate(options, 1):
            self._screen.say(f"  {number}  {option}")
        numbers = [str(number) for number in range(1, len(options) + 1)]
        ask = functools.partial(
            IntPrompt.ask, self._text("Number"), console=self._console, choices=numbers, show_choices=False
        )
        return self._asked(lambda: ask(default=1)) - 1

    def is_confirmed(self, question: str, *, default: bool = False) -> bool:
        """Return whether the reply is `y` or `yes`; `default` if it is empty."""
        from rich.prompt import Prompt  # noqa: PLC0415 - as above

        asked = self._text(f"{question} [{'Y/n' if default else 'y/N'}]")
        reply = self._asked(lambda: Prompt.ask(asked, console=self._console, default="", show_default=False))
        return reply.strip().lower() in {"y", "yes"} if reply.strip() else default

    def show(self, error: ComfyClientError) -> None:
        """Show why a reply is not accepted."""
        self._screen.say(f"!!  {error}")

    def _required(self, ask: Callable[[], str]) -> str:
        while not (value := self._asked(ask).strip()):
            pass
        return value

    def _asked(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except EOFError:
            self._screen.say("")
            raise Declined(self._if_declined) from None

    @property
    def _console(self) -> Console:
        return console_for(self._screen.err)

    @staticmethod
    def _text(question: str) -> Text:
        from rich.text import Text  # noqa: PLC0415 - as above

        return Text(question)
