"""Networks and their training: tensors in, tensors out.

May import none of the project's other folders. Its rooms are, in the order in which they import each other:
`config`, `precision`, `metrics`, `optimizer`, `data_parallel`, `hub`, `vision`, `quantize`,
`tokenizer`, `teacher`, `mllm`, `training`, `convert`. It touches local disk to read and write weights, and
the network in `hub` and for named trunks; it knows no cluster and no table.
"""
