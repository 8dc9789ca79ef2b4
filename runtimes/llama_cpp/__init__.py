"""llama.cpp, through the package `xllamacpp`: its C API, and its server where the C API cannot be trusted.

The engine lives in a child process (`child.py`): it is C++ that parses files and may abort on them, it logs to file
descriptors, and its memory comes back for certain only when its process ends. `session.py` asks `engine.py`, which
calls the C API that `library.py` binds; `server_session.py` asks `server.py`, which drives the package's server, one
row at a time. `context.py` holds what both must know of LongRoPE, `allowances.py` what they may take. `runtime.py`
chooses. Neither road reads the chat template in the file: it is a program, and quantkit alone renders it.

May import what every plug-in may: the core below pipeline, and `_engine_process`.
"""
