"""DualToken's public names: the tokenizer, token datasets, their loaders, recipes and the format's constants.

`__init__.pyi` lists them. Each is imported on first use, so `import dualtoken` takes milliseconds and brings
neither torch nor Ray. The folders beside this file are links to the repository's own: `dualtoken.model` is
`model/`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
