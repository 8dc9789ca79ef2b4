"""The command line; `app.py` is its edge, every other file but output.py and options.py is one verb."""
