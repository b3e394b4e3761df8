"""Write, beside each network that comes along, the steps by which engines run it without PyTorch.

python examples/steps.py            after its weights or its config changed
"""

from dla.inference.traced_model import STEPS, steps_of_shipped
from dla.weights.spec import shipped, shipped_names

for name in shipped_names():
    path = shipped(name) / STEPS
    path.write_text(steps_of_shipped(f"shipped:{name}"), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1000:.1f} kB")
