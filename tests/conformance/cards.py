"""A reader of Adaptive Cards, as their schema explorer (adaptivecards.io/explorer, version 1.4) has the elements."""

from typing import Any

BLOCK = {"type", "id", "spacing", "separator", "isVisible", "height", "fallback", "requires"}
TEXT = {"type", "text", "color", "fontType", "highlight", "isSubtle", "italic", "size", "strikethrough", "weight"}
FIELDS = {
    "TextBlock": BLOCK | TEXT | {"wrap", "maxLines", "horizontalAlignment", "style"},
    "RichTextBlock": BLOCK | {"inlines", "horizontalAlignment"},
    "TextRun": TEXT | {"underline", "selectAction"},
    "Action.OpenUrl": {"type", "title", "url", "iconUrl", "tooltip", "style", "mode", "isEnabled"},
}
VALUES = {
    "size": {"Small", "Default", "Medium", "Large", "ExtraLarge"},
    "weight": {"Lighter", "Default", "Bolder"},
    "spacing": {"Default", "None", "Small", "Medium", "Large", "ExtraLarge", "Padding"},
}


def check(card: dict[str, Any]) -> None:
    """Raise an `AssertionError` where the card is none that Teams shows (up to version 1.5 of the schema)."""
    assert card["type"] == "AdaptiveCard"
    assert card["$schema"] == "http://adaptivecards.io/schemas/adaptive-card.json"
    assert "1.2" <= card["version"] <= "1.5", "RichTextBlock came with 1.2"
    for element in elements(card):
        known = FIELDS[element["type"]]
        assert element.keys() <= known, f"{element['type']} has no {element.keys() - known}"
        for name, values in VALUES.items():
            assert element.get(name, "Default") in values
        if element["type"] == "Action.OpenUrl":
            assert element["url"].startswith(("https://", "http://"))


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
