"""What a run is given that nobody else may see: a webhook's address, and variables with keys in
them. In hidden files of mode 0600, never fetched, in no record."""

import json
import os
import re
from typing import Callable, Dict, Optional

from remote.agent.root.paths import read_json, write_whole

ADDRESS = ".notify"
VARIABLES = ".env.json"
SHORTEST = 6
"""A value of fewer characters is no key, and would black out half of a log."""


def keep_private(directory: str, address: str, variables: Optional[Dict[str, str]]) -> None:
    """Variables that an attempt before was given stay, where none of the same name is given."""
    if address:
        write_whole(os.path.join(directory, ADDRESS), address.encode() + b"\n")
    if variables:
        known = {**read_variables(directory), **variables}
        write_whole(os.path.join(directory, VARIABLES), json.dumps(known).encode())


def read_variables(directory: str) -> Dict[str, str]:
    known = read_json(os.path.join(directory, VARIABLES)) or {}
    return {str(name): str(value) for name, value in known.items()}


def hider(directory: str) -> Callable[[bytes], bytes]:
    """Blacks out the variables' values, as this run has them now, in what it is given."""
    values = {
        line.encode("utf-8", "surrogateescape")
        for value in read_variables(directory).values()
        for line in [value, *value.splitlines()]
        if len(line) >= SHORTEST
    }
    if not values:
        return lambda data: data
    # The longest first: one value may begin with another one.
    found = re.compile(b"|".join(map(re.escape, sorted(values, key=len, reverse=True))))
    return lambda data: found.sub(b"***", data)
