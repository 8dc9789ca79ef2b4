"""OpenVINO's IR computed in numpy from the .xml and the .bin, by the specification of its operators: no line of the
engine, nor of quantkit's exporter.

`document.py` parses, `constants.py` reads the .bin, `operators.py` holds what each operator computes, `graph.py` runs
them in order and keeps the state; `runtime.py` is the plug-in.
"""
