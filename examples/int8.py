"""Write, beside the network that comes along, its int8 form, if it passes its gate.

python examples/int8.py DATA        after its weights changed; DATA has the train and val of Tiny ImageNet
"""

import argparse

from dla.nets.table import DEFAULT_MODEL
from dla.verbs.forms import FILE
from dla.verbs.int8 import make_form
from dla.weights.sources import shipped

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
made = make_form(DEFAULT_MODEL, parser.parse_args().data, say=print)
path = shipped(DEFAULT_MODEL.partition(":")[2]) / FILE
path.write_bytes(made.form.to_bytes())
print(f"{made.gate.sentence()}\n{path}: {path.stat().st_size / 1e6:.1f} MB")
