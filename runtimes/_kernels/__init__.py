"""What the matrix kernels of each engine take: one engine per file, asked before any work and before the engine starts.

    kernel            containers              bits        groups           matrix of N rows and K columns
    vllm-cpu          gptq sym, awq, c-t      4           32 64 128 -1 *   N and K multiples of 32
    vllm-cuda-marlin  gptq sym, awq, c-t      4, sym 8    32 64 128 -1     any: padded to Marlin's tiles **
    gptqmodel-torch   gptq                    2 to 8      16 .. 1024 -1    any
    transformers      c-t                     2 to 8      any ***          any: it computes with dense weights
    transformers      bitnet                  ternary     one            N a multiple of 4
    cpm.cu            marlin, target cpm.cu   sym 4       128 -1           whole tiles ****
    ist-marlin        marlin, target ist      sym 4       128 -1           N a multiple of 256, K of 128
    llama.cpp         gguf                    any         any              K a multiple of 32 *****
    openvino          openvino                2, 4, 8     any              any

c-t is compressed-tensors; a group of -1 is a whole row. vLLM and CPM.cu make one matrix of layers that read the same
input (q, k and v; gate and up): they must be on one grid, and N counts the rows of all. Dense folders (hf) are loaded
by vLLM and transformers. transformers and GPTQModel run a plain Llama only.
*     in compressed-tensors any even group, and no quantized head
**    a quantized head only in multiples of 64 rows, which the 73448 of the 8B model are not
***   with zero points or a quantized embedding a single grid, dequantized while loading
****  N a multiple of 64 and K of 128, or N of 128 and K of 64
***** of 64 in q2_0, of 256 in tq1_0 and tq2_0, of any type whole blocks a group: the exporter sees to it

A file here is found by its name (`quantkit.registry.kernels`) and ends with `KERNELS`, a tuple of objects that follow
`quantkit.protocols.Kernel`; `_rules.py` holds what they share. An engine that quantkit also runs has its session in
the file of the same name one folder up, which asks these rules. May be imported by the runtimes alone, and imports
core wings below the pipeline.
"""
