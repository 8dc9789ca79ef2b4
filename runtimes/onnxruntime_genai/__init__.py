"""onnxruntime-genai: ONNX Runtime with a loop around it, as applications on a PC or phone have it.

Its `Generator` runs the folder as it is, by `genai_config.json`, on token ids. What its own tokenizer does to a text
before it is ids is another matter, which `session.py` states.

It lives in a child process (`engine.py`). `settings.py` holds what a `genai_config.json` may say: much else in it names
libraries to be loaded.

May import what every plug-in may: the core below pipeline, and modules of the room that begin with `_`.
"""
