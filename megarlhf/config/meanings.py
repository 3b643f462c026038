"""What each setting means, in words: the comments beside the schema's fields are also the help."""

import ast
import inspect
import io
import textwrap
import tokenize
from dataclasses import is_dataclass
from functools import cache


@cache
def meanings_of(cls: type) -> dict[str, str]:
    """The comment beside each field of a configuration's section, by the field's name.

    A field that a subclass changes keeps its meaning unless it is given another one. Fields without a
    comment are left out: their names say it.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            found |= _comments(base)
    return found


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field in definition.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            lines = range(field.lineno, (field.end_lineno or field.lineno) + 1)
            if text := " ".join(by_line[line] for line in lines if line in by_line):
                found[field.target.id] = text
    return found
