"""Train on a GPU server with three commands: deploy, train, fetch-results. `fab --list` names all
tasks; remote/tasks/ has them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from remote.tasks import tasks

ns = tasks(Path(__file__).resolve().parent)
