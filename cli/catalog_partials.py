"""The files that a definition's templates extend, include and import, with those that these use in turn.

A name is looked up in the definition's own folder, and then in those above it, up to the PATH that was given. What is
found is stored with the definition: what a version renders does not change when a file does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from channels.rendering import TemplateRenderer
from domain.notification import MAX_PARTIALS, check_partial_name


class Unusable(Exception):
    """A file or a field that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Partials:
    """What one definition's templates use, read on the way.

    Attributes:
        folder: the definition's.
        root: the PATH that was given; nothing outside of it is read.
        read: how a file is read.
        sources: by name, what has been found; an empty text for what could not be read.
    """

    folder: Path
    root: Path
    renderer: TemplateRenderer
    read: Callable[[Path], str]
    sources: dict[str, str] = field(default_factory=dict)

    def collect(self, source: str) -> Iterator[str]:
        """Read what a template uses; yields what is wrong, with the line, and the file if it is another.

        What can be no partial's name is left to the check of the templates, which tells of it.
        """
        pending = [("", source)]
        while pending:
            place, text = pending.pop()
            for line, name in self.renderer.references(text):
                if name in self.sources or len(self.sources) > MAX_PARTIALS or not _possible(name):
                    continue
                try:
                    self.sources[name] = self._found(name)
                    pending.append((f"{name} ", self.sources[name]))
                except Unusable as error:
                    self.sources[name] = ""
                    yield f"{place}line {line}: {name!r} {error}"

    def _found(self, name: str) -> str:
        """The text of a file inside the catalog folder; links are followed first, so that none leads outside."""
        root = self.root.resolve()
        for folder in self._folders(root):
            path = folder / name
            if not path.exists():
                continue
            if not path.resolve().is_relative_to(root):
                raise Unusable(f"lies outside {self.root}: only files of the catalog folder are read")
            return self.read(path)
        raise Unusable(f"is no file in {self.folder} or a folder above it, up to {self.root}")

    def _folders(self, root: Path) -> Iterator[Path]:
        folder = self.folder.resolve()
        while folder.is_relative_to(root):
            yield folder
            folder = folder.parent


def _possible(name: str) -> bool:
    try:
        return bool(check_partial_name(name))
    except ValueError:
        return False


def used(sources: Mapping[str, str]) -> dict[str, str]:
    """The partials in the order of their names, so that the same files make the same definition."""
    return dict(sorted(sources.items()))
