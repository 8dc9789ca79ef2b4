"""OpenVINO IR: a stateful decoder as openvino_model.xml and .bin, for OpenVINO and OpenVINO GenAI.

`exporter.py` holds the plug-in; `graph.py` nodes and their XML, `decoder.py` the model in nodes, `rope.py` its rotary
embedding, `weights.py` how a weight lies in the .bin and becomes a float again, `layout.py` all of it; `reading.py` is
the inverse, `document.py` the XML parser that it trusts, `tokenizer.py` the text side.
"""
