"""The layout map: one declarative family file, and everything that moves weights derived from it."""
