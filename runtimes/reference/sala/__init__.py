"""MiniCPM-SALA in numpy: layers of InfLLM-v2 without RoPE and with an output gate, and layers of lightning attention.

`lightning.py` is the linear attention, `forward.py` the two kinds of layers, `session.py` runs a model with them. It
stands on `quantkit.runtimes.reference.sparse`: layers of the first kind attend as that does.

Letters as in `quantkit.runtimes.reference.formulas`. Sources: "Lightning Attention-2" (Qin et al. 2024); OpenBMB's
`modeling_minicpm_sala.py` as ports of it in SGLang, vLLM and InfiniLM describe it, which agree in what is done here.
"""
