"""Running the launch scripts, with stand-ins for programs that this machine may lack."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"
OURS = ("SLURM_", "RAY_", "OMP_", "MEGARLHF_")


def environment(path: Path | None = None, **extra: str) -> dict[str, str]:
    """This process's environment without the scripts' own variables; `path` goes before PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    if path is not None:
        kept["PATH"] = f"{path}:{kept['PATH']}"
    return kept | {"PYTHON": sys.executable} | extra


def run(
    script: Path, *words: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished script, its output captured as text."""
    command = ["bash", str(script), *words]
    return subprocess.run(
        command, env=env or environment(), cwd=cwd, capture_output=True, text=True, timeout=200
    )


def command_lines(output: str) -> list[list[str]]:
    """The words of each line, as a shell reads them."""
    return [shlex.split(line) for line in output.splitlines()]


def program(path: Path, text: str) -> Path:
    """Writes an executable shell script."""
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)
    return path
