"""Write the operations of each built-in network next to its weights, so that engines run it without PyTorch.

python tools/ops.py            after its weights or its config changed
"""

from dla.inference.traced_model import OPS, shipped_ops
from dla.weights.spec import shipped, shipped_names

for name in shipped_names():
    path = shipped(name) / OPS
    path.write_text(shipped_ops(f"shipped:{name}"), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1000:.1f} kB")
