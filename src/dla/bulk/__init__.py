"""Many photos on many machines: plan a manifest, answer it in shards, collect the records.

`__init__.pyi` lists the public names: functions of columns for other programs that distribute work.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
