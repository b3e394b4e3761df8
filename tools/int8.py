"""Write the int8 model of the built-in network next to its weights, if it passes its gate.

python tools/int8.py DATA        after the weights changed; DATA has the train and val of Tiny ImageNet
python tools/int8.py DATA --try  check the stored model once more on this kind of CPU

The first form also checks the model on the older kinds of CPU that this one can emulate.
"""

import argparse
import os
import subprocess
import sys

from dla.cli.common import show_progress
from dla.engines.cpu import instructions
from dla.engines.quantized import parse_quantized
from dla.inference.calibrate_int8 import make_quantized, try_quantized
from dla.inference.int8_store import FILE
from dla.types import DEFAULT_MODEL
from dla.weights.spec import shipped

# for each instruction set, the oneDNN limit that excludes it
OLDER = {"amx_int8": "AVX512_CORE_VNNI", "avx512_vnni": "AVX512_CORE", "avx512f": "AVX2", "avx_vnni": "AVX2"}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("--try", action="store_true", dest="again")
args = parser.parse_args()
path = shipped(DEFAULT_MODEL.partition(":")[2]) / FILE
if args.again:
    quantized = parse_quantized(path.read_bytes(), str(path))
    gate = try_quantized(quantized, DEFAULT_MODEL, args.data)
    quantized = quantized.with_gate(gate)
else:
    with show_progress(quiet=False) as progress:
        result = make_quantized(DEFAULT_MODEL, args.data, progress=progress)
    quantized, gate = result.quantized, result.gate
path.write_bytes(quantized.to_bytes())
print(gate.sentence(), flush=True)
if not args.again:
    for limit in sorted({OLDER[name] for name in instructions() if name in OLDER}):
        limited = os.environ | {"ONEDNN_MAX_CPU_ISA": limit}
        subprocess.run([sys.executable, __file__, args.data, "--try"], env=limited, check=True)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
