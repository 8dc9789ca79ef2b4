"""OpenVINO on the CPU, through the package `openvino`, in a child process.

`runtime.py` holds the plug-in; `session.py` asks `engine.py`, which runs in the child; `allowances.py` says what that
may take.
"""
