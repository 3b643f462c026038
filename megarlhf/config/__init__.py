"""The dataclass tree (the only home of a default), YAML files, dotted overrides, cross-checks."""
