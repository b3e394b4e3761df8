"""Deep Layer Aggregation: networks, weights, prediction, training.

Everything public is here (`__init__.pyi` lists it); a name is imported when it is first used, so `import dla` is quick
and loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
