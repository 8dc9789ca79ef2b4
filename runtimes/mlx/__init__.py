"""mlx-lm in a child process: `runtime.py` has the plug-in, `session.py` and `engine.py` the two ends of the pipe."""
