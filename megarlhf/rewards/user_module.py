"""The user's Python file as a module, and where in it something was raised."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from megarlhf.errors import UserError


def load_module(path: str, name: str, *, setting: str, subject: str) -> ModuleType:
    """Import a Python file, which may import the modules beside it.

    Args:
        path: The file.
        name: What the module is called from then on.
        setting: That names the file, for messages.
        subject: What the file is, for messages.

    Raises:
        UserError: There is no such file, or it does not run.
    """
    file = Path(path)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UserError("no such Python file", where=path, fix=f"set {setting} to a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    try:
        with _importable(file.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script's sys.exit() must not end the run unsaid
        raise UserError(f"the {subject} does not run: {error!r}", where=path) from error
    return module


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Modules of a directory come first while the file is imported, and last from then on.

    So its own imports mean its neighbours, and a neighbour that is called like a library does not
    stand in the way of what this process imports later.
    """
    entry = str(directory)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def line_of(error: BaseException) -> str:
    """Where it was raised, below the caller."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
