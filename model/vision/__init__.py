"""Vision: pictures to tensors and back, and the vision transformers of tokenizers and teachers.

May import `config`, `precision` and `hub` of `model`. Picture files are read from local disk, and open_clip's
packaged configurations; towers are built with fresh weights, so nothing here touches the network.

It has no face: importing timm and torchvision takes seconds, so each file is imported by those that need it.
"""
