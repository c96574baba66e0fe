"""A package of the project itself, as runs import it: read on the laptop, laid out on the server.
Imports on every system, unlike the rest of the agent."""

from typing import Any, Dict, List, NamedTuple

INSTALLABLE = ("pyproject.toml", "setup.py", "setup.cfg")
"""A folder with one of them is a package."""


class LocalPackage(NamedTuple):
    """`places`: folders below the project, with `/`, in which its modules lie; `links`: modules
    that lie in a folder of another name, as `mine` in code/.

    `entry_points`: by group, then name; `name`: empty where nothing names it, and it has no
    metadata.
    """

    places: List[str]
    links: Dict[str, str]
    entry_points: Dict[str, Dict[str, str]]
    name: str = ""
    version: str = "0"

    @property
    def scripts(self) -> Dict[str, str]:
        """Program → `module:function`."""
        groups = [self.entry_points.get(name, {}) for name in ("console_scripts", "gui_scripts")]
        return {name: what for group in groups for name, what in group.items()}


def read_package(value: Dict[str, Any]) -> LocalPackage:
    """Of LocalPackage._asdict(). Raises ValueError for another form."""
    try:
        package = LocalPackage(**value)
        texts = [*package.places, package.name, package.version]
        for pairs in (package.links, *package.entry_points.values()):
            texts += [text for pair in pairs.items() for text in pair]
        "".join(texts)
    except (TypeError, AttributeError):
        raise ValueError("a package of the project is written down in an unknown form") from None
    return package
