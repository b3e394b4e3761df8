"""Deep Layer Aggregation: networks, weights, prediction, training.

`__init__.pyi` lists the public names. Each is imported at its first use, so `import dla` is quick and loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
