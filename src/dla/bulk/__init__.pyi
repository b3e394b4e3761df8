"""The public names and their modules."""

from .callables import Edges as Edges
from .callables import Features as Features
from .callables import Predict as Predict
from .callables import Segment as Segment
