"""InfLLM-v2, the sparse attention of MiniCPM4 and 4.1, in numpy: what `quantkit.models.spec.SparseSpec` describes.

`variants.py` says in what the published codes differ, `memory.py` keeps keys, values and means of keys, `selection.py`
chooses blocks, `attention.py` attends to them; `session.py` runs a model with it. It stands within the reference
runtime because it is another attention of the same oracle: everything else of a forward pass is shared.

Letters as in `quantkit.runtimes.reference.formulas`, and R = H / G query heads of a group, B blocks, n means of keys.
Source: OpenBMB `modeling_minicpm.py` of MiniCPM4.1 and its kernels, `infllmv2_cuda_impl`; "InfLLM-V2" (2025).
"""
