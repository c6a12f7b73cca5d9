"""Conversion of weights: from and to the released DualToken code, from SigLIP, and to graphs for export.

The room may import every other room of `model`. It works on the CPU, reads and writes files on local disk
only, and never the network. `siglip_teacher.convert_siglip` is not re-exported: it brings open_clip, which
takes seconds to import.
"""

from dualtoken.model.convert.export import export_graphs
from dualtoken.model.convert.graph_description import Origin
from dualtoken.model.convert.reference import from_reference, refuse_older_layouts, to_reference
from dualtoken.model.convert.reference_config import config_from_reference, config_to_reference
from dualtoken.model.convert.siglip import load_siglip, read_weights, tower_weights

__all__ = [
    "Origin",
    "config_from_reference",
    "config_to_reference",
    "export_graphs",
    "from_reference",
    "load_siglip",
    "read_weights",
    "refuse_older_layouts",
    "to_reference",
    "tower_weights",
]
