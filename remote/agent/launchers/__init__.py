"""How a run's supervisor is started, seen, ended and reached: tmux, setsid, Slurm."""
