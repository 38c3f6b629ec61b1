"""One adapter per way of reaching a person, and rendering."""
