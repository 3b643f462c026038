"""What is done to checkpoints, and what is said of them."""

import os
import pickle

from safetensors.torch import load_file, save_file

from tools.checkpoint_convert.cli import main

NORM = "model.layers.1.input_layernorm.weight"


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def change(file, **tensors):
    content = {**load_file(file), **tensors}
    save_file({n: t for n, t in content.items() if t is not None}, file)


def rewrite_metadata(directory, act):
    content = pickle.loads((directory / ".metadata").read_bytes())
    act(content)
    (directory / ".metadata").write_bytes(pickle.dumps(content))


def cut(file, nbytes=2000):
    os.truncate(file, file.stat().st_size - nbytes)


def flip(file, offset):
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))
