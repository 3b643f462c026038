"""The keys that a configuration class knows, and what is said about others."""

import difflib
import re
from dataclasses import dataclass

from megarlhf.config.settings import Setting, settings
from megarlhf.errors import UserError


@dataclass(frozen=True)
class Keys:
    """The keys a configuration class knows."""

    defaults: dict[str, Setting]
    sections: set[str]  # dotted keys of the nested dataclasses

    @classmethod
    def of(cls, config_class: type) -> "Keys":
        """Those of a tree of dataclasses."""
        defaults = {setting.key: setting for setting in settings(config_class())}
        dots = ((key, dot.start()) for key in defaults for dot in re.finditer(r"\.", key))
        return cls(defaults, {key[:end] for key, end in dots})

    def check_known(self, key: str, where: str) -> None:
        """Raises a UserError that names similar keys unless ``key`` is a setting or a section."""
        known = [*self.defaults, *self.sections]
        if key in known:
            return
        meant = key.strip().lower()
        section, _, name = meant.rpartition(".")
        same_name = [other for other in known if other.rpartition(".")[2] == name]
        nearest = difflib.get_close_matches(meant, known, n=1, cutoff=0.6 if same_name else 0)
        guesses = " or ".join(repr(guess) for guess in dict.fromkeys(same_name + nearest))
        fix = f"did you mean {guesses}?"
        if not same_name:
            place = section if section in self.sections else ""
            fix += f" Known {f'in {place}' if place else 'sections'}: {self.names_in(place)}"
        raise UserError(f"unknown key {key!r}", where=where, fix=fix)

    def section_error(self, section: str, given: str, where: str) -> UserError:
        """What to say where a value stands in the place of a section."""
        return UserError(
            f"{section or 'the file'} expects a section, got {given}",
            where=where,
            fix=f"set the keys of the section: {self.names_in(section)}",
        )

    def names_in(self, section: str) -> str:
        """The names in a section, as a list in words."""
        prefix = f"{section}." if section else ""
        below = [key.removeprefix(prefix) for key in self.defaults if key.startswith(prefix)]
        return ", ".join(dict.fromkeys(key.partition(".")[0] for key in below))
