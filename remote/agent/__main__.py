"""The agent's ways to be started: `serve` (by the laptop), `supervise DIR TOKEN` (a run), `build …`
(an environment)."""

import sys


def main() -> None:
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "supervise":
        from remote.agent.runs import supervisor

        sys.exit(supervisor.main(arguments))
    if command == "build":
        from remote.agent.environments import builder

        sys.exit(builder.main(arguments))
    sys.exit(f"the agent knows no command {command!r}")


main()
