"""How run.json of a run's directory is read and written. What is not set is left out."""

import os

from remote.agent.root.paths import read_json, write_json
from remote.agent.shared.reading import differing, read
from remote.agent.shared.run_records import Asked


def read_asked(directory: str) -> Asked:
    return read(Asked, read_json(os.path.join(directory, "run.json")))


def write_asked(directory: str, asked: Asked) -> None:
    write_json(os.path.join(directory, "run.json"), differing(asked))
