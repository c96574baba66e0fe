"""How run.json and state.json of a run's directory are read and written. What is not set is left
out."""

import os
from typing import Type, TypeVar

from remote.agent.root.paths import read_json, write_json
from remote.agent.shared.reading import differing, read
from remote.agent.shared.run_records import FILE_OF, Asked, RunDetail

R = TypeVar("R", Asked, RunDetail)


def load(kind: Type[R], directory: str) -> R:
    return read(kind, read_json(os.path.join(directory, FILE_OF[kind])))


def save(record: R, directory: str) -> None:
    write_json(os.path.join(directory, FILE_OF[type(record)]), differing(record))
