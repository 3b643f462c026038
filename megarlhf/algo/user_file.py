"""An object from a Python file of the user's."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError


def load_object(path: str, name: str, *, where: str) -> Any:
    """What the file at ``path`` calls ``name``. A file is run once a process.

    Args:
        path: A Python file.
        name: A variable that it defines.
        where: The setting that names the file, for messages.

    Raises:
        UserError: There is no such file, it does not run, or defines no such variable.
    """
    file = Path(path).resolve()
    where = f"{where}={path}"
    module_name = f"megarlhf_user:{file}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise UserError("no such Python file", where=where, fix="give the path of a .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look a class's module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(
                f"the file does not run: {error!r}", where=where, fix="run it with python"
            ) from error
    found = getattr(sys.modules[module_name], name, None)
    if found is None:
        raise UserError(f"the file defines no {name}", where=where, fix=f"define {name} = ...")
    return found
