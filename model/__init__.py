"""Networks and their training: tensors in, tensors out.

May import none of the project's other folders. Its rooms are, in the order in which they import each other:
`config`, `precision`, `metrics`, `optimizer`, `hub`, `vision`, `quantize`, `tokenizer`, `teacher`,
`training`, `convert`. It touches local disk to read and write weights, and the network in `hub` alone; it
knows no cluster and no table.
"""
