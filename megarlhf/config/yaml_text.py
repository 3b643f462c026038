"""The YAML that configurations are read from and written as."""

import math
import re
from typing import Any

import yaml

from megarlhf.config.settings import to_dict


class Loader(yaml.SafeLoader):
    """YAML's safe subset in which the word ``none`` is null too."""


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads: quotes the text ``none``, escapes line breaks."""


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.splitlines() in ([], [text]) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _represent_text)


_NULL = "tag:yaml.org,2002:null"
for _class in (Loader, Dumper):
    _class.add_implicit_resolver(_NULL, re.compile(r"(none|None|NONE)\Z"), ["n", "N"])


def to_yaml(config: Any) -> str:
    """The configuration as a YAML text from which `load` builds an equal one."""
    return yaml.dump(
        to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )


def is_null(node: yaml.Node) -> bool:
    """Whether it is null, in any of its spellings."""
    return node.tag == _NULL
