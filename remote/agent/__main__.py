"""The agent's ways to be started: `serve` (by the laptop), `supervise DIR TOKEN` (a run; of a
Slurm job's further nodes with the first one's addresses and port), `build …` (an environment),
`hold …` (its lock, while a job builds it), `guard ROOT` (a shutdown that was planned)."""

import sys


def main() -> None:
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "supervise":
        from remote.agent.supervisor import supervisor

        sys.exit(supervisor.main(arguments))
    if command == "build":
        from remote.agent.environments import builder

        sys.exit(builder.main(arguments))
    if command == "hold":
        from remote.agent.root import locks

        sys.exit(locks.hold(arguments))
    if command == "guard":
        from remote.agent.runs import planned_shutdown

        sys.exit(planned_shutdown.guard(arguments[0]))
    sys.exit(f"the agent knows no command {command!r}")


main()
