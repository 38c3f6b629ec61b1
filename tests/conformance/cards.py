"""A reader of Adaptive Cards. Their elements and fields `tests/published.py` checks, by Microsoft's own types."""

from typing import Any


def check(card: dict[str, Any]) -> None:
    """Raise an `AssertionError` where the card is none that Teams shows (up to version 1.5 of the schema)."""
    assert card["type"] == "AdaptiveCard"
    assert card["$schema"] == "http://adaptivecards.io/schemas/adaptive-card.json"
    assert "1.2" <= card["version"] <= "1.5", "RichTextBlock came with 1.2"
    links = [element["url"] for element in elements(card) if element["type"] == "Action.OpenUrl"]
    assert all(link.startswith(("https://", "http://")) for link in links)


def elements(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the body, what they hold included."""
    found = []
    for block in card["body"]:
        runs = block.get("inlines", [])
        found += [block, *runs, *(run["selectAction"] for run in runs if "selectAction" in run)]
    return found


def texts(card: dict[str, Any]) -> list[str]:
    """What is to be read, in order."""
    return [element["text"] for element in elements(card) if "text" in element]
